"""A stand-in for llama.cpp's converter: it writes what it is given into a GGUF file, under names of its own."""

from __future__ import annotations

from pathlib import Path

from lockadapt.exports.gguf import LlamaCpp, open_llama_cpp

CONVERTER = """
import json
import sys
from pathlib import Path
arguments = sys.argv[1:]
if "--print-supported-models" in arguments:
    sys.exit("TEXT models:\\n  - {text}\\nMMPROJ models:\\n  - {mmproj}")
folder, output = Path(arguments[0]), Path(arguments[arguments.index("--outfile") + 1])
if "--vocab-only" in arguments:
    assert not list(folder.glob("*.safetensors"))
    {vocabulary}
    output.write_text("")
    sys.exit()
(file,) = folder.glob("*.safetensors")
data = file.read_bytes()
start = 8 + int.from_bytes(data[:8], "little")
tensors = json.loads(data[8:start])
del tensors["__metadata__"]
mmproj = "--mmproj" in arguments
{weights}
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
writer = GGUFWriter(output, "llama")
writer.add_description(" ".join(arguments[3:]))
for number, (name, stored) in enumerate(tensors.items()):
    first, last = stored["data_offsets"]
    raw = np.frombuffer(data[start + first : start + last], np.uint8)
    if stored["dtype"] == "BF16":
        raw = raw.reshape(*stored["shape"][:-1], -1)
        writer.add_tensor(f"t{number}", raw, raw_dtype=GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(f"t{number}", raw.view(np.float32).reshape(stored["shape"]))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""


def stand_in(
    folder: Path,
    vocabulary: str = "pass",
    weights: str = "pass",
    text: tuple[str, ...] = ("LlamaForCausalLM",),
    mmproj: tuple[str, ...] = ("Idefics3ForConditionalGeneration",),
) -> LlamaCpp:
    """llama.cpp's sources, as far as they are asked.

    Args:
        folder: to write them into.
        vocabulary: what is run when only the tokenizer is converted.
        weights: what is run before `tensors`, by name, are written; `mmproj` says what they are.
        text: the classes whose LLM it says to take.
        mmproj: the classes whose tower and projector it says to take.
    """
    folder.mkdir(exist_ok=True)
    script = CONVERTER.replace("{vocabulary}", vocabulary).replace("{weights}", weights)
    script = script.replace("{text}", "\\n  - ".join(text)).replace("{mmproj}", "\\n  - ".join(mmproj))
    (folder / "convert_hf_to_gguf.py").write_text(script)
    return open_llama_cpp(folder)


def arguments_of(file: Path) -> str:
    """What the stand-in was called with to write a file."""
    from gguf import GGUFReader

    field = GGUFReader(file).get_field("general.description")
    assert field is not None
    return str(field.contents())
