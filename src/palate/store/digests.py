"""What is remembered of an erased id: enough to know it again, and no more."""

import hashlib
import hmac


def digest_of(salt: bytes, user_id: str) -> str:
    """HMAC-SHA256 of an id under the store's salt, in hexadecimal digits."""
    return hmac.digest(salt, user_id.encode(), hashlib.sha256).hex()
