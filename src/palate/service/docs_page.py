"""The OpenAPI document as one page: no script, nothing from another server."""

import json
from typing import Any, Final

from jinja2 import Environment

_PAGE: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c22 }
h2 { font-size: 1.05rem; margin: 2.5rem 0 .3rem; border-top: 1px solid #d8d8e0; padding-top: 1rem }
code, pre { font: 14px/1.45 ui-monospace, monospace; background: #f4f4f7 } code { padding: 0 .2em }
pre { padding: .7rem; overflow-x: auto; white-space: pre-wrap } .role { color: #6a4fb3 } dt { font-weight: 600 }
</style>
<h1>{{ title }} {{ version }}</h1>
<p>The same for programs: <a href="/openapi.json">/openapi.json</a> (OpenAPI 3.1).</p>
<pre>{{ intro }}</pre>
{% for each in operations %}
<h2 id="{{ each.name }}"><code>{{ each.method }} {{ each.path }}</code> {{ each.summary }}</h2>
<pre>{{ each.description }}</pre>
{% if each.parameters %}<dl>{% for one in each.parameters %}
<dt><code>{{ one.name }}</code> ({{ one.in }})</dt><dd>{{ one.description }}</dd>{% endfor %}</dl>{% endif %}
{% for example in each.examples %}<p>Body, for example:</p><pre>{{ example }}</pre>{% endfor %}
<dl>{% for status, said in each.answers %}<dt>{{ status }}</dt><dd>{{ said }}</dd>{% endfor %}</dl>
{% endfor %}
</html>
"""


def docs_page(document: dict[str, Any]) -> str:
    """The HTML of an OpenAPI document."""
    schemas = document["components"]["schemas"]
    operations = [
        {
            "name": operation["operationId"],
            "method": method.upper(),
            "path": path,
            "summary": operation["summary"],
            "description": operation["description"],
            "parameters": operation.get("parameters", []),
            "examples": _examples(operation, schemas),
            "answers": [(status, said["description"]) for status, said in operation["responses"].items()],
        }
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    info = document["info"]
    template = Environment(autoescape=True).from_string(_PAGE)
    return template.render(
        title=info["title"], version=info["version"], intro=info["description"], operations=operations
    )


def _examples(operation: dict[str, Any], schemas: dict[str, Any]) -> list[str]:
    if "requestBody" not in operation:
        return []
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    names = [choice["$ref"].rpartition("/")[2] for choice in schema.get("oneOf", [schema])]
    return [json.dumps(example) for name in names for example in schemas[name].get("examples", [])]
