"""`dlrun init [DIR]`: a small project with a model, a data set and a task of one's own, ready to train."""

from __future__ import annotations

from pathlib import Path

from dlrun.errors import DlrunError, Exit

_TEMPLATES = Path(__file__).parent / "_project"  # every file of it ends in .txt, so that no tool takes it for code


def init(folder: Path) -> int:
    """Write the project into a folder. Raises: DlrunError if one of its files is there already."""
    folder = folder.expanduser()
    files = {folder / path.relative_to(_TEMPLATES).with_suffix(""): path for path in sorted(_TEMPLATES.rglob("*.txt"))}
    if existing := [path for path in files if path.exists()]:
        raise DlrunError(f"{existing[0]} is there already; nothing was written", "name a new folder: dlrun init DIR")
    for path, template in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(template.read_text())
        except OSError as error:
            reason = f"{path}: cannot be written: {error.strerror or error}"
            raise DlrunError(reason, "name another folder: dlrun init DIR", Exit.DISK) from error
    for path in files:
        print(path)
    print("\nTrain it:")
    if folder.resolve() != Path.cwd():
        print(f"  cd {folder}")
    print("  dlrun train experiment=first")
    return int(Exit.OK)
