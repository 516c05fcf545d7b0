"""Requests that the page answers, beyond those that tests/studio/test_page.py makes of a real one."""

import sys

import pytest
from in_process import load_script
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from concat_id.files.paths import PROJECT_ROOT
from concat_id.studio.guard import bracketed, guarded

HOST = "studio.example.org"


@pytest.mark.parametrize(("headers", "status"), [
    ({}, 200), ({"Origin": f"https://{HOST}"}, 200), ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
    ({"Origin": "https://evil.example"}, 403), ({"Origin": "null"}, 403), ({"Origin": f"http://{HOST}:9999"}, 403),
    ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, 403),
])  # fmt: skip
def test_a_password_opens_the_page_to_other_names_and_not_to_other_pages(headers, status):
    routes = [Route("/", lambda request: PlainTextResponse("the page"))]
    answers = [TestClient(Starlette(routes=routes, **guarded(has_password))).get("/", headers={"Host": HOST} | headers)
               for has_password in (True, False)]  # fmt: skip
    assert [answer.status_code for answer in answers] == [status, 403]
    assert ("Host" in answers[0].text) == (status == 403) and "--listen" in answers[1].text


def test_where_the_page_listens_and_a_password_that_other_users_do_not_see(monkeypatch):
    monkeypatch.setenv("CONCAT_ID_PASSWORD", "secret")
    monkeypatch.setattr(sys, "argv", ["studio.py", "--listen", "0.0.0.0"])
    assert load_script(PROJECT_ROOT / "sat" / "studio.py").read_arguments().password == "secret"
    assert [bracketed(address) for address in ("::", "[::]", "0.0.0.0")] == ["[::]", "[::]", "0.0.0.0"]
