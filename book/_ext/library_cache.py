"""Key the cache of executed notebooks by everything that a chapter imports, not only by its cells."""

import hashlib
from pathlib import Path

SOURCES = (
    "simba_lab/**/*.py",
    "simba_lab/**/*.pyi",
    "simba_lab/**/*.html",
    "data/**/*",
    "requirements.txt",
)


def library_key(root: Path) -> str:
    """Return a digest of the package, the scenarios and the pinned environment."""
    digest = hashlib.sha256()
    for pattern in SOURCES:
        for path in sorted(root.glob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(
                    path.relative_to(root).as_posix().encode()
                    + b"\0"
                    + path.read_bytes()
                )
    return digest.hexdigest()[:16]


def cache_path(root: Path) -> str:
    """Return the folder of the chapters that were executed with this library."""
    return str(root / "_build" / ".jupyter_cache" / library_key(root))


def failures(root: Path) -> list[Path]:
    """Return the messages of the chapters that failed in the last run."""
    return sorted((root / "_build" / "failures").glob("*.txt"))


def set_cache_path(app, config):
    """Give each state of the library a cache of its own."""
    if config.nb_execution_mode == "cache":
        root = Path(app.confdir or app.srcdir)
        config.nb_execution_cache_path = cache_path(root)
        # Chapters that have just failed are shown without outputs instead of failing once more.
        config.nb_execution_excludepatterns = [
            *config.nb_execution_excludepatterns,
            *(f"book/{log.stem}.ipynb" for log in failures(root)),
        ]


def mark_stale(app, env, added, changed, removed):
    """Read notebooks and reference again when the library changed: Sphinx compares only their own files."""
    key = app.config.nb_execution_cache_path
    before, env.simba_lab_cache_path = (
        getattr(env, "simba_lab_cache_path", key),
        key,
    )
    return (
        []
        if before == key
        else [
            name
            for name in env.found_docs
            if str(env.doc2path(name)).endswith((".ipynb", ".rst"))
        ]
    )


def setup(app):
    """Connect to Sphinx."""
    app.connect("config-inited", set_cache_path, priority=100)
    app.connect("env-get-outdated", mark_stale)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
