"""The rules of the house: which part may see which, and how long anything may be."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "sat" / "concat_id"
CONFIGURATION = {
    "config", "args_config", "model_config", "wan_config", "wan_command_line", "released_config", "command_line", "typed", "constraints",
    "parser", "yaml_files",
}  # fmt: skip
BASE = CONFIGURATION | {
    "arrays", "bootstrap", "colours", "errors", "files", "formats", "json_files", "locks", "low_rank", "model_folders", "pickle_calls",
    "pickles", "startup", "tensor_cache", "transforms", "video", "distributed", "versions", "weight_folders", "weights", "workers",
}  # fmt: skip
LEAVES = {"models", "diffusion", "face", "data"}
ASSEMBLIES = {"pipelines", "training", "conversion", "evaluation", "curation"}
DOORS = {  # a library is known in these rooms alone
    "sat": {"models", "training"},
    "deepspeed": {"training", "distributed"},
    "diffusers": {"models", "pipelines", "conversion"},
    "transformers": {"models", "face"},
    "insightface": {"face", "evaluation"},
    "onnxruntime": {"face", "evaluation"},
    "omegaconf": {"yaml_files"},
    "yaml": {"yaml_files", "training"},
    "decord": {"data", "evaluation"},
}
# What people of the demonstration's world wear and stand before, and how its prompts say so; red, green and blue are channels as well.
WORDS_OF_THE_WORLD = re.compile(
    r"(?<![a-z])(obedien\w*|beanies?|hats?|hoodies?|sweaters?|walls?(?![-_ ]?(?:clock|time))|curtains?|says_\w+|"
    r"orange|purple|pink|yellow|brown)(?![a-z])", re.IGNORECASE)  # fmt: skip
FACE_PARSING = {"face/parsing.py", "face/reference.py"}  # a hat is a class of CelebAMask's
SOURCES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "sat").glob("*.py"))
DEMO = sorted((ROOT / "demo").rglob("*.py"))
WORLD = sorted((ROOT / "demo" / "world").glob("*.py"))  # beside the library: sees its base alone


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def room_of(module: str) -> str:
    """`concat_id.models.mixins` -> `models`."""
    return module.split(".")[1]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_from_assemblies_over_leaves_to_base(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    assert room in BASE | LEAVES | ASSEMBLIES, f"{room}: a new room; say here what it may see"
    allowed = {room} | BASE | (LEAVES if room in ASSEMBLIES else set())
    seen = {room_of(name) for name in imported_modules(path) if name.startswith("concat_id.")}
    assert seen <= allowed, f"{path.name} sees {sorted(seen - allowed)}"


@pytest.mark.parametrize("path", WORLD, ids=lambda path: path.name)
def test_the_world_sees_the_base_alone(path):
    seen = imported_modules(path)
    assert {room_of(name) for name in seen if name.startswith("concat_id.")} <= BASE
    assert not {name.split(".")[0] for name in seen} & DOORS.keys()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_source_knows_the_world(path):
    assert not {name.split(".")[0] for name in imported_modules(path)} & {"world", "networks", "anny", "numba"}


def words_of_the_world(text: str) -> list[str]:
    return [found[1].lower() for found in WORDS_OF_THE_WORLD.finditer(text)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_source_speaks_of_the_world(path):
    words = words_of_the_world(path.read_text(encoding="utf-8"))
    if path.relative_to(PACKAGE).as_posix() in FACE_PARSING:
        words = [word for word in words if word not in ("hat", "hats")]
    assert not words, f"{path.name} speaks of {sorted(set(words))}, which belongs to demo/"


def test_the_words_of_the_world_are_found_in_its_own_metric():
    spoken = words_of_the_world((ROOT / "demo" / "adherence.py").read_text(encoding="utf-8"))
    assert {"hat", "beanie", "wall", "curtain", "says_colour", "purple"} <= set(spoken)
    assert not words_of_the_world("what wallet chats of a wall-clock time, sharp")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_library_has_its_door(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    libraries = {name.split(".")[0] for name in imported_modules(path)}
    strangers = {library for library in libraries & DOORS.keys() if room not in DOORS[library]}
    assert not strangers, f"{path.name} imports {sorted(strangers)}"


@pytest.mark.parametrize("path", SOURCES + SCRIPTS + DEMO, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} is {node.end_lineno - node.lineno + 1} lines long"


def test_entry_scripts_read_as_recipes():
    for script in SCRIPTS:
        assert len(script.read_text(encoding="utf-8").splitlines()) <= 90, script.name


def test_installed_sat_is_not_hidden():
    assert not (ROOT / "sat" / "__init__.py").exists()


@pytest.mark.parametrize("path", SOURCES + SCRIPTS + DEMO, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_device_is_written_into_the_code(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not node.value.startswith("cuda:") and (node.value != "cuda" or path.name == "distributed.py"), f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and node.attr == "cuda":
            raise AssertionError(f"line {node.lineno}: .cuda; ask concat_id.distributed.choose_device")


@pytest.mark.parametrize("path", SOURCES + SCRIPTS + DEMO, ids=lambda path: str(path.relative_to(ROOT)))
def test_checkpoints_are_read_as_data(path):
    """torch.load appears in weights.py alone, where it is told weights_only."""
    calls = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    assert not calls or path.name == "weights.py"
    assert all(any(keyword.arg == "weights_only" for keyword in call.keywords) for call in calls)
