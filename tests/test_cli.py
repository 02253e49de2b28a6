"""The command line as a whole: the verb table, exit codes, one-line errors, tables, and what it does not import."""

import json
import re
import subprocess
import sys
import types
from collections.abc import Callable

import pytest

from visionapps import __version__
from visionapps.cli.main import VERBS, main
from visionapps.cli.table import render
from visionapps.errors import ConfigError, DataError

# Each of these costs more than the 0.15 s in which --help and argument errors are to answer.
HEAVY = {
    *("torch", "torchvision", "lightning", "pytorch_lightning", "lightning_fabric", "timm", "albumentations", "cv2"),
    *("segmentation_models_pytorch", "rasterio", "PIL", "numpy", "scipy", "matplotlib", "pycocotools", "safetensors"),
    *("jsonargparse", "tensorboard", "yaml", "tqdm"),
}


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after running some code."""
    report = "import json, sys\nprint(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


EACH = """
import json, os, sys
from visionapps.cli.main import main
for arguments in json.loads(sys.argv[1]):
    if os.fork():
        os.wait()
        continue
    try:
        main(arguments)
    except SystemExit:
        print("\\n" + json.dumps([arguments, sorted({name.partition(".")[0] for name in sys.modules})]), flush=True)
    os._exit(0)
"""
LEAVING = [["--help"], ["--version"], [], ["no-such-verb"], *([verb, "--help"] for verb in VERBS)]


@pytest.fixture(scope="module")
def imported():
    """By arguments of a command that leaves at once, the top-level modules that it imported into a bare interpreter."""
    done = subprocess.run([sys.executable, "-c", EACH, json.dumps(LEAVING)], capture_output=True, text=True, check=True)
    return {tuple(words): set(names) for words, names in map(json.loads, re.findall(r"^\[\[.*", done.stdout, re.M))}


def test_importing_the_package_imports_nothing_heavy():
    assert HEAVY.isdisjoint(
        modules_after("import visionapps, visionapps.errors, visionapps.structures, visionapps.files")
    )


@pytest.mark.parametrize("arguments", LEAVING)
def test_help_and_argument_errors_import_nothing_heavy(arguments, imported):
    assert "visionapps" in imported[tuple(arguments)]
    assert HEAVY.isdisjoint(imported[tuple(arguments)])


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: visionapps {verb}")
    assert len(text.splitlines()) > 5


def test_the_verbs_are_listed_by_help(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for verb, text in VERBS.items():
        assert [line.split(maxsplit=1) for line in lines].count([verb, text]) == 1


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"visionapps {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: VERB"),
        (["sumbit"], "invalid choice: 'sumbit'"),
        (["submit", "--no-such-option"], "visionapps submit: error:"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], int]], None]:
    """Put a verb of the test's own in place of one in the table."""

    def install(body: Callable[[], int]) -> None:
        module = types.ModuleType("visionapps.cli.models", "A verb of the test.")
        module.configure = lambda parser: parser.add_argument("--level", type=int)
        module.run = lambda options: body()
        monkeypatch.setitem(sys.modules, "visionapps.cli.models", module)

    return install


def raising(error: BaseException) -> Callable[[], int]:
    def body() -> int:
        raise error

    return body


def test_the_result_of_a_verb_is_the_exit_code(verb):
    verb(lambda: 0)
    assert main(["models"]) == 0
    verb(lambda: 1)
    assert main(["models", "--level", "3"]) == 1


@pytest.mark.parametrize("error", [DataError("a.png: broken;\n  replace it"), ConfigError("a.png: broken; replace it")])
def test_a_mistake_of_the_user_is_one_line_on_stderr(verb, error, capsys):
    verb(raising(error))
    assert main(["models"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: a.png: broken; replace it\n")


def test_traceback_shows_where_a_mistake_arose(verb):
    verb(raising(DataError("broken")))
    with pytest.raises(DataError, match="broken"):
        main(["--traceback", "models"])


def test_a_fault_of_ours_is_not_dressed_up_as_the_users(verb):
    verb(raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["models"])


def test_an_interrupt_exits_with_130(verb, capsys):
    verb(raising(KeyboardInterrupt()))
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_who_leaves_early_is_no_error():
    code = (
        "import sys, types\n"
        "verb = types.ModuleType('visionapps.cli.models')\n"
        "verb.configure = lambda parser: None\n"
        "verb.run = lambda options: [print('x' * 1000, flush=True) for _ in range(1000)] and 0\n"
        "sys.modules['visionapps.cli.models'] = verb\n"
        "from visionapps.cli.main import main\n"
        "sys.exit(main(['models']))"
    )
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "{sys.executable}" -c "$0" | head -n 1', code], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "x" * 1000 + "\n"


def test_the_console_script_and_the_module_are_the_same_program():
    done = subprocess.run([sys.executable, "-m", "visionapps.cli.main", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"visionapps {__version__}\n")


class TestTable:
    def test_text_goes_left_and_numbers_go_right_with_three_decimals(self):
        text = render(["class", "dice", "pixels"], [["Road", 0.5, 7], ["Dense vegetation", 0.98765, 12345]])
        assert text.splitlines() == [
            "class              dice  pixels",
            "----------------  -----  ------",
            "Road              0.500       7",
            "Dense vegetation  0.988   12345",
        ]

    def test_what_is_missing_is_a_dash_and_stays_in_its_column(self):
        text = render(["class", "dice", "note"], [["a", None, "x"], ["b", 1.0, None]])
        assert text.splitlines() == ["class   dice  note", "-----  -----  ----", "a          -  x", "b      1.000  -"]

    def test_a_column_of_mixed_cells_goes_left(self):
        assert render(["value"], [[3], ["many"]]).splitlines() == ["value", "-----", "3", "many"]

    def test_no_rows_leave_the_headers(self):
        assert render(["a", "bcd"], []).splitlines() == ["a  bcd", "-  ---"]

    def test_lines_have_no_trailing_blanks(self):
        assert all(
            line == line.rstrip() for line in render(["name", "x"], [["a", "y"], ["long name", ""]]).splitlines()
        )
