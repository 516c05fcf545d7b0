"""docs/configuration.md is what the schema says."""

import importlib.util

from conftest import ROOT


def test_the_page_is_not_stale():
    spec = importlib.util.spec_from_file_location("write_configuration", ROOT / "scripts" / "write_configuration.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run python scripts/write_configuration.py"
