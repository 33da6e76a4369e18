"""What a browser may load and run for the page: this server's own files, and the scripts that stand in the page.

The framework runs the small functions of events from their text, which is what 'unsafe-eval' is for, and sets styles on
elements. No other origin is named in any line.
"""

import re
from base64 import b64encode
from hashlib import sha256

INLINE = re.compile(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)


def policy_of(page: str) -> str:
    """`Content-Security-Policy` for a page (HTML): inline scripts run if they stand in exactly this page."""
    hashes = sorted({f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in INLINE.findall(page)})
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self' 'unsafe-eval' {' '.join(hashes)}",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "media-src 'self' blob:",
            "font-src 'self'",
            "connect-src 'self'",
            "manifest-src 'self'",
            "object-src 'none'",
            "base-uri 'self'",
            "form-action 'none'",
            "frame-ancestors 'self'",
        )
    )
