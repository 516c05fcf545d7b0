"""Who may ask the page for something: the page itself, not other pages that are open in the same browser."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

OWN_NAMES = "127.0.0.1", "localhost", "::1"


class OwnRequestsOnly:
    """Refuse what other pages ask for, and requests under another name than this machine's own, which a website's can resolve to."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with 403 or pass the request on."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if not _is_own(headers):
                remedy = "open http://127.0.0.1 with the page's port, or start the page with --listen and --password"
                found = headers.get("origin") or headers.get("host", "")
                return await PlainTextResponse(f"found a request of {found}; {remedy}\n", 403)(scope, receive, send)
        await self.app(scope, receive, send)


def _is_own(headers: Headers) -> bool:
    host, origin = headers.get("host", ""), headers.get("origin")
    embedded = headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate"  # which has no origin
    try:
        return urlsplit(f"//{host}").hostname in OWN_NAMES and (origin is None or urlsplit(origin).netloc == host) and not embedded
    except ValueError:
        return False


OWN_REQUESTS_ONLY = {"middleware": [Middleware(OwnRequestsOnly)]}
"""For the application that serves the page."""
