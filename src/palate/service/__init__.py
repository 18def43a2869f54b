"""The running system: events in, lists out, models let in on evidence."""
