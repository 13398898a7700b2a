"""What of the lab's own code is in a key: edits of a copy of the package, without importing it."""

import shutil
from pathlib import Path

import pytest

import simba_lab
from simba_lab.core.source_code import NotFingerprintable, code_fingerprint, modules_behind

PACKAGE = Path(simba_lab.__file__).parent
FIT = "simba_lab.training.fitting"


@pytest.fixture
def edited(tmp_path):
    """Return a function that edits a file of a copy of the package, and gives the new digest."""
    numbers = iter(range(100))

    def edit(name, old, new, root=FIT):
        folder = tmp_path / str(next(numbers)) / "simba_lab"
        shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")
        return code_fingerprint(root, package=folder)

    return edit


def test_docstrings_comments_layout_and_annotations_do_not_count(edited):
    before = code_fingerprint(FIT)
    assert edited("training/fitting.py", '"""', '"""Edited. ') == before
    assert edited("training/networks.py", "import torch\n", "import torch  # edited\n\n") == before
    assert edited("training/tensor_files.py", "(path: Path", "(path: str | Path") == before
    idle = "from collections.abc import Mapping"
    assert edited("training/tensor_files.py", idle, idle + ", Sized") == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("training/trainer.py", "state.total += loss", "state.total -= loss"),
        ("training/mitigation/adversarial_unlearning.py", " * ", " / "),
        ("training/networks.py", " + ", " - "),
        ("core/rng.py", "digest_size=16", "digest_size=32"),
    ],
)
def test_a_changed_operator_counts_in_any_folder(edited, name, old, new):
    assert edited(name, old, new) != code_fingerprint(FIT)


def test_what_a_fit_does_not_import_does_not_count(edited):
    names = modules_behind(FIT)
    rooms = {name.split(".")[1] for name in names if "." in name}
    assert rooms == {"core", "training"}
    assert f"{FIT.rpartition('.')[0]}.metrics" not in names
    assert "simba_lab.training.mitigation.adversarial_unlearning" in names
    before = code_fingerprint(FIT)
    assert edited("training/metrics.py", " - ", " + ") == before


def test_a_row_counts_what_looks_inside_only_where_it_does():
    cells, looking = "simba_lab.experiments.cells", "simba_lab.interpretation"
    assert any(name.startswith(looking) for name in modules_behind(cells))
    assert not any(name.startswith(looking) for name in modules_behind(cells, leave_out=[looking]))
    assert not any(name.startswith("simba_lab.book") for name in modules_behind(cells))


def small_package(folder, **files):
    folder = folder / "simba_lab"
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        (path.parent / "__init__.py").touch()
    (folder / "__init__.py").write_text("")
    return folder


@pytest.mark.parametrize(
    "line",
    [
        "import simba_lab.a.b as c",
        "from simba_lab.a import b",
        "from simba_lab.a.b import f",
        "from .a import b",
        "from .a.b import f as g",
        "def f():\n    from simba_lab.a.b import f\n    return f",
        "class A:\n    from simba_lab.a.b import f",
        "try:\n    import simba_lab.a.b\nexcept ImportError:\n    pass",
        "if TYPE_CHECKING:\n    pass\nelse:\n    from simba_lab.a.b import f",
        "from simba_lab.lazy import f",
    ],
)
def test_imports_of_every_form_are_followed(tmp_path, line):
    package = small_package(tmp_path, a__b="def f(): return 1", main=line)
    (package / "lazy").mkdir()
    stub = (
        "import lazy_loader\n__getattr__, _, __all__ = lazy_loader.attach_stub(__name__, __file__)"
    )
    (package / "lazy" / "__init__.py").write_text(stub)
    (package / "lazy" / "__init__.pyi").write_text("from ..a.b import f\nfrom .other import g\n")
    (package / "lazy" / "other.py").write_text("")
    if "lazy" in line:
        (package / "lazy" / "own.py").write_text("from simba_lab.a.b import f")
        (package / "lazy" / "__init__.pyi").write_text("from .own import f\nfrom .other import g\n")
    names = modules_behind("simba_lab.main", package=package)
    assert "simba_lab.a.b" in names and "simba_lab.lazy.other" not in names


def test_imports_for_type_checkers_are_not_followed(tmp_path):
    line = "if typing.TYPE_CHECKING:\n    from simba_lab.a.b import f"
    package = small_package(tmp_path, a__b="def f(): return 1", main=line)
    assert modules_behind("simba_lab.main", package=package) == ["simba_lab.main"]


def test_fields_of_a_dataclass_keep_what_their_annotation_does(tmp_path):
    digests = set()
    for number, annotation in enumerate(["int", "float", "ClassVar[int]", "typing.ClassVar"]):
        text = f"class A:\n    x: {annotation} = 1\n"
        package = small_package(tmp_path / str(number), main=text)
        digests.add(code_fingerprint("simba_lab.main", package=package))
    assert len(digests) == 2


def test_what_is_no_module_of_the_lab_has_no_fingerprint():
    with pytest.raises(NotFingerprintable, match="numpy"):
        code_fingerprint("numpy")
