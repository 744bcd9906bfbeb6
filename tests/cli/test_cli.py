"""The command line as a script sees it: speed of help, streams, JSON contracts, exit codes, no tracebacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.command import lockadapt
from tests.support.rows import pictures
from tests.support.runs import recipe_file, rows_file, values
from tests.support.tiny import tiny_llm, tiny_tower

SINGLE = "import torch; torch.set_num_threads(1); from lockadapt.cli import main; main()"


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A command line of its own process, as users have it."""
    command = [sys.executable, "-c", SINGLE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    recipe_file(folder, values(tiny, folder))
    return folder


def test_former_keys_are_noted_on_stderr_and_leave_stdout_alone(tiny: Path, tmp_path: Path) -> None:
    file = recipe_file(tmp_path, values(tiny, tmp_path, data={"row_tokens": 64}))
    done = lockadapt("check", file, "--structure", "--json")
    assert json.loads(done.stdout) == {"recipe": str(file), "ok": True}
    notes = done.stderr.splitlines()
    assert len(notes) == 1
    assert notes[0].startswith(f"note: {file}:")
    assert notes[0].endswith(": data.row_tokens is now called data.max_row_tokens")


def test_help_and_version_import_neither_torch_nor_transformers() -> None:
    script = (
        "import sys\nfrom lockadapt.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'pydantic', 'numpy', 'PIL'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy), code)"
    )
    for argument in ("--help", "-h", "--version"):
        done = subprocess.run(
            [sys.executable, "-c", script, argument], capture_output=True, text=True, check=True
        )
        assert done.stdout.endswith("HEAVY [] 0\n")
        assert done.stderr == ""


@pytest.mark.parametrize(
    "verb",
    [
        *("plan", "train", "eval", "merge", "verify", "export", "search", "check", "chat"),
        *("assemble", "schema", "doctor", "quickstart"),
    ],
)
def test_every_verb_has_help(verb: str) -> None:
    done = lockadapt(verb, "-h")
    assert done.returncode == 0
    assert "Usage:" in done.stdout


def test_schema_and_print_config(project: Path) -> None:
    schema = json.loads(lockadapt("schema").stdout)
    assert {"model", "lora", "objectives", "training", "stages"} <= set(schema["properties"])
    shown = lockadapt("train", project / "recipe.yaml", "lora.rank=7", "--print-config").stdout
    line = next(line for line in shown.splitlines() if line.startswith("lora.rank"))
    assert "7" in line
    assert "override" in line


@pytest.mark.slow
def test_train_eval_merge_chat(project: Path) -> None:
    run, merged = project / "run", project / "merged"
    trained = process("train", project / "recipe.yaml", "--output", run, "--json")
    assert trained.returncode == 0, trained.stderr
    result = json.loads(trained.stdout)
    assert set(result) == {"output", "steps", "seconds", "samples_per_second", "locked"}
    assert result["locked"] is True
    assert "lora" in trained.stderr
    assert "Failed to load" not in trained.stderr
    assert "Warning" not in trained.stderr
    scores = json.loads(lockadapt("eval", run, "--json").stdout)
    assert set(scores["vqa"]) == {"accuracy", "by_answer_type", "n"}
    assert set(scores["vqa"]["by_answer_type"]) == {"other", "yes/no"}
    done = lockadapt("merge", run, "--output", merged, "--json")
    assert done.returncode == 0, done.stderr
    contract = {"output", "max_abs_logit_diff", "kl", "top1_agreement", "missing_keys", "unexpected_keys"}
    assert contract <= set(json.loads(done.stdout))
    again = json.loads(lockadapt("eval", merged, "--json").stdout)
    assert again == scores
    image = project / "picture.png"
    Image.new("RGB", (30, 30), "red").save(image)
    answers = [
        lockadapt("chat", target, "--image", image, "--question", "what?").stdout for target in (run, merged)
    ]
    assert answers[0] == answers[1] != ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "nowhere.yaml", "-o", "out"], 2, "nowhere.yaml"),
        (["train", "recipe.yaml", "lora.rnak=3", "-o", "out"], 2, "Did you mean lora.rank"),
        (["train", "recipe.yaml"], 2, "no run folder given"),
        (["train"], 2, "Missing argument"),
        (["nonsense"], 2, "nonsense"),
        (["train", "recipe.yaml", "-o", "."], 2, "not empty"),
        (["train", "recipe.yaml", "-o", "out", "lora.targets=[q_porj]"], 2, "did you mean 'q_proj'"),
        (["train", "recipe.yaml", "-o", "out", "objectives.vqa.train.path=no.jsonl"], 3, "no.jsonl"),
        (["train", "recipe.yaml", "-o", "out", "objectives.vqa.answers=no.txt"], 3, "no.txt"),
        (["train", "recipe.yaml", "-o", "out", "model.llm=./nowhere"], 4, "nowhere"),
        (["train", "recipe.yaml", "-o", "out", "training.learning_rate=1e30"], 6, "step"),
        (["train", "recipe.yaml", "-o", "out", "data.max_pixels=100"], 10, "pixels"),
        (["eval", "."], 2, "not finished"),
        (["merge", ".", "-o", "out"], 2, "not finished"),
        (["chat", ".", "--image", "none.png", "--question", "?"], 3, "none.png"),
        (["search", ".", "--images", "pictures"], 2, "nothing is asked for"),
        (["search", ".", "--images", "pictures", "--query", "red"], 2, "not finished"),
        (["export", ".", "--to", "ollama", "-o", "out"], 2, "There are: merged"),
        (["export", ".", "--to", "dual", "-o", "out"], 2, "not finished"),
    ],
)
def test_failures_end_in_one_message_and_their_code(
    arguments: list[str], code: int, message: str, project: Path, tmp_path: Path, tiny: Path
) -> None:
    recipe_file(tmp_path, values(tiny, tmp_path))
    done = lockadapt(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert message in done.stderr
    assert done.stdout == ""


def test_scores_of_a_run_that_embeds(embedding_run: Path) -> None:
    scores = json.loads(lockadapt("eval", embedding_run, "--json").stdout)
    assert set(scores) == {"vqa", "retrieval"}
    assert set(scores["retrieval"]) == {"text_to_image", "image_to_text", "n"}
    for way in ("text_to_image", "image_to_text"):
        assert set(scores["retrieval"][way]) == {"r1", "r5", "r10", "median_rank"}
    shown = lockadapt("eval", embedding_run).stdout.splitlines()
    start = shown.index("retrieval: n 4")
    ways = [line.split(":")[0] for line in shown[start + 1 : start + 3]]
    assert sorted(ways) == ["  image_to_text", "  text_to_image"]
    numbers = scores["retrieval"]["text_to_image"]
    assert f"  text_to_image: r1 {numbers['r1']:.4f}  r5 1.0000  r10 1.0000" in "\n".join(shown)


def test_search(embedding_run: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    given = (embedding_run, "--images", tmp_path / "images", "--index", tmp_path / "index")
    done = lockadapt("search", *given, "--query", "a red shape", "--top", 2, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["query"] == "a red shape"
    assert [set(hit) for hit in report["results"]] == [{"file", "score"}] * 2
    assert report["index"]["embedded"] == 4
    shown = lockadapt("search", *given, "--query", "a red shape", "--top", 2, "-q")
    assert shown.stderr == ""
    assert shown.stdout.splitlines() == [
        f"{hit['score']:.4f}  {tmp_path / 'images' / hit['file']}" for hit in report["results"]
    ]
    picture = tmp_path / "images" / "blue.png"
    both = json.loads(lockadapt("search", *given, "--query", "x", "--image", picture, "--json").stdout)
    assert "query" not in both
    assert [query["query"] for query in both["searches"]] == ["x", str(picture)]


def test_check_says_yes_and_shows_what_is_learned(project: Path) -> None:
    done = lockadapt("check", project / "recipe.yaml", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is True
    assert report["objectives"]["vqa"]["train"]["rows"] == 8
    assert report["steps"] == 5
    assert "[<|end" in done.stderr or "[</s>]" in done.stderr


def test_check_says_no(project: Path) -> None:
    rows = rows_file(project)
    broken = project / "broken.jsonl"
    broken.write_text(rows.read_text() + '{"image": "gone.png", "question": "?", "answer": "no"}\n')
    done = lockadapt("check", project / "recipe.yaml", f"objectives.vqa.train.path={broken}")
    assert done.returncode == 3
    assert "broken.jsonl:9" in done.stderr


def test_structure_check_needs_no_model(project: Path) -> None:
    done = lockadapt("check", project / "recipe.yaml", "model.llm=org/absent", "--structure", "--json")
    assert json.loads(done.stdout)["ok"] is True


@pytest.mark.slow
def test_assemble_verb(tmp_path: Path) -> None:
    tiny_llm("llama", tmp_path / "llm")
    tiny_tower("mobilenet-v2", tmp_path / "tower")
    done = lockadapt(
        "assemble", "--llm", tmp_path / "llm", "--tower", tmp_path / "tower", "-o", tmp_path / "out", "--json"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["model_class"] == "FastVlmForConditionalGeneration"
    assert report["proof"]["logit_difference"] < 1e-4
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_doctor(tmp_path: Path) -> None:
    done = lockadapt("doctor", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["facts"]["transformers"]
