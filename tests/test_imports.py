"""What imports what: heavy libraries wait until they are needed, and tests share helpers through `tests/support` only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.parametrize("statement", ["import lockadapt", "main(['--help'])", "main(['schema'])"])
def test_heavy_libraries_wait_until_they_are_needed(statement: str) -> None:
    script = (
        "import contextlib, io, sys\n"
        "def main(arguments):\n"
        "    from lockadapt.cli import main\n"
        "    sys.argv = ['lockadapt', *arguments]\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "        main()\n"
        "    assert out.getvalue()\n"
        f"{statement}\n"
        "heavy = {'torch', 'transformers', 'peft', 'bitsandbytes', 'matplotlib', 'trl', 'huggingface_hub'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "module", ["lockadapt.api.steps", "lockadapt.objectives", "lockadapt.evaluation.evaluate"]
)
def test_bitsandbytes_is_first_imported_where_its_line_is_kept_quiet(module: str) -> None:
    """Here that line may never appear: it depends on what the processor can do."""
    script = (
        "import importlib, sys, traceback\n"
        "seen = []\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'bitsandbytes':\n"
        "            files = [frame.filename for frame in traceback.extract_stack()]\n"
        "            seen.append(any(file.endswith('lockadapt/models/bitsandbytes.py') for file in files))\n"
        "            sys.meta_path.remove(self)\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"importlib.import_module({module!r})\n"
        "print(seen)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[True]\n"


def test_no_test_imports_from_the_file_of_another() -> None:
    imports = {
        f"{file.relative_to(TESTS)} imports {node.module}"
        for file in TESTS.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests.")
        if "test_" in (node.module or "")
    }
    assert imports == set()
