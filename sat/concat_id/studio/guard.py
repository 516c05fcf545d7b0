"""Who may ask the page for something: the page itself, not other pages that are open in the same browser."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

OWN_NAMES = "127.0.0.1", "localhost", "::1"


class OwnRequestsOnly:
    """Refuse what other pages ask for, also in the name of somebody who has logged in.

    Without a password requests under another name than this machine's own are refused as well, as a website's can resolve to it.
    """

    def __init__(self, app: ASGIApp, has_password: bool):
        self.app, self.has_password = app, has_password

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with 403 or pass the request on."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if not self._is_own(headers):
                remedy = "open http://127.0.0.1 with the page's port, or start the page with --listen and --password"
                remedy = "open the page itself; a proxy before it has to pass on the header Host" if self.has_password else remedy
                found = headers.get("origin") or headers.get("host", "")
                return await PlainTextResponse(f"found a request of {found}; {remedy}\n", 403)(scope, receive, send)
        await self.app(scope, receive, send)

    def _is_own(self, headers: Headers) -> bool:
        host, origin = headers.get("host", ""), headers.get("origin")
        of_others = headers.get("sec-fetch-site") in ("cross-site", "same-site")  # told where there is no origin
        if of_others and headers.get("sec-fetch-mode") != "navigate":
            return False
        try:
            is_known = self.has_password or urlsplit(f"//{host}").hostname in OWN_NAMES
            return is_known and (origin is None or urlsplit(origin).netloc == host)
        except ValueError:
            return False


def bracketed(address: str) -> str:
    """An address as it stands in a URL: one of IPv6 in brackets."""
    return f"[{address}]" if ":" in address and not address.startswith("[") else address


def guarded(has_password: bool) -> dict[str, list[Middleware]]:
    """For the application that serves the page."""
    return {"middleware": [Middleware(OwnRequestsOnly, has_password)]}
