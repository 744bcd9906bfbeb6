"""What the converter did with tensors is told by their values: nothing is lost without a word."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lockadapt.errors import VerificationError
from lockadapt.exports.gguf.accounted import account

gguf = pytest.importorskip("gguf", reason="needs the gguf package (pip install 'lockadapt[gguf]')")
GIVEN = {
    "matrix": torch.randn(8, 6, generator=torch.Generator().manual_seed(0)),
    "norm": torch.randn(6, generator=torch.Generator().manual_seed(1)),
    "qkv": torch.randn(12, 4, generator=torch.Generator().manual_seed(2)),
    "patches": torch.randn(4, 3, 2, 2, 2, generator=torch.Generator().manual_seed(3)),
}


def written(folder: Path, tensors: dict[str, Tensor], half: bool = False) -> tuple[Path, Path]:
    """A folder with `GIVEN`, and a GGUF file with these tensors."""
    save_file(GIVEN, folder / "model.safetensors")
    writer = gguf.GGUFWriter(folder / "x.gguf", "llama")
    for name, tensor in tensors.items():
        writer.add_tensor(name, (tensor.half() if half else tensor).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "x.gguf", folder


def rearranged() -> dict[str, Tensor]:
    """`GIVEN` as the converter may write it: rows in another order, a norm plus 1, tensors in parts."""
    q, k, v = GIVEN["qkv"].chunk(3)
    return {
        "a": GIVEN["matrix"].flip(0),
        "b": GIVEN["norm"] + 1,
        **{"q": q, "k": k, "v": v},
        **{"p0": GIVEN["patches"][:, :, 0], "p1": GIVEN["patches"][:, :, 1]},
    }


@pytest.mark.parametrize("half", [False, True])
def test_every_value_is_there(half: bool, tmp_path: Path) -> None:
    accounted = account(*written(tmp_path, rearranged(), half))
    assert (accounted.tensors, accounted.compared) == (4, 4)
    assert accounted.changed == accounted.lacking == ()
    assert set(accounted.rounded) == (set(GIVEN) if half else set())
    accounted.require_all(tmp_path / "x.gguf")


@pytest.mark.parametrize("lost", ["a", "b", "k", "p1"])
def test_a_lost_tensor_is_named(lost: str, tmp_path: Path) -> None:
    tensors = rearranged()
    del tensors[lost]
    accounted = account(*written(tmp_path, tensors))
    (name,) = accounted.lacking
    assert name == {"a": "matrix", "b": "norm", "k": "qkv", "p1": "patches"}[lost]
    with pytest.raises(VerificationError, match=f"took 3 of 4 tensors; its file lacks {name}"):
        accounted.require_all(tmp_path / "x.gguf")


def test_other_values_are_told(tmp_path: Path) -> None:
    tensors = rearranged()
    tensors["a"][0, 0] += 1e-6
    accounted = account(*written(tmp_path, tensors))
    assert (accounted.compared, accounted.changed) == (3, ("matrix",))


def test_one_tensor_does_not_stand_for_two(tmp_path: Path) -> None:
    both = {"first": torch.ones(4), "second": torch.ones(4)}
    path, folder = written(tmp_path, {"only": torch.ones(4)})
    save_file(both, folder / "model.safetensors")
    assert account(path, folder).lacking == ("second",)


def test_what_the_converter_leaves_out_by_design_is_not_asked_for(tmp_path: Path) -> None:
    tensors = rearranged()
    del tensors["b"]
    accounted = account(*written(tmp_path, tensors), left_out=("nor",))
    assert (accounted.tensors, accounted.compared, accounted.lacking) == (3, 3, ())
