"""kdbench-export: every form of a student, loaded by whom it is for."""

import json
import re
import shutil
from pathlib import Path

import onnx
import onnxruntime
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from kdbench.assembly.finished import Shelf, build_finished, find_sources
from kdbench.data.augmentation.views import normalise
from support.finished import DATA
from support.runs import runs

SHORT = [*DATA, "dataset.num_train=16", "schedule.epochs=1"]
KD = "synthetic-resnet14-resnet8-kd-s0"


def exported(command, *words: str) -> dict:
    result = command("export", *words)
    assert result.code == 0, result.err
    facts = json.loads(result.out.splitlines()[-1])
    assert facts["n"] == 60
    assert facts["top1"] == facts["top1_exported"]
    return facts


def student(name: str = KD):
    (source,) = find_sources([name], Path("runs"), None, None)
    dataset = Shelf().dataset(source)
    return build_finished(source, dataset)[0], dataset


@pytest.mark.slow
def test_onnx_takes_pixels_of_any_batch_and_gives_probabilities(command, trained):
    facts = exported(command, KD, "format=onnx", "pixels=true", "opset=20")
    model = onnx.load(facts["file"])
    onnx.checker.check_model(model, full_check=True)
    assert {one.version for one in model.opset_import if one.domain == ""} == {20}
    session = onnxruntime.InferenceSession(facts["file"], providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("pixels", "tensor(uint8)", [3, 32, 32])
    assert made.name == "probabilities"
    network, dataset = student()
    for n in (1, 5):
        pixels = dataset.test.images[:n]
        (found,) = session.run(None, {"pixels": pixels.numpy()})
        with torch.no_grad():
            logits = network(normalise(pixels, dataset.mean, dataset.std)).logits
        torch.testing.assert_close(torch.from_numpy(found), logits.softmax(1), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_graphs_of_torch_load_without_kdbench(command, trained):
    network, dataset = student()
    images = normalise(dataset.test.images[:3], dataset.mean, dataset.std)
    with torch.no_grad():
        ours = network(images).logits
    facts = exported(command, KD, "format=torch_export")
    program = torch.export.load(facts["file"])
    torch.testing.assert_close(program.module()(images), ours)
    names = {type(node.target).__module__ for node in program.graph.nodes}
    assert not any(name.startswith("kdbench") for name in names)
    facts = exported(command, KD, "format=torchscript")
    with pytest.warns(FutureWarning):
        torch.testing.assert_close(torch.jit.load(facts["file"])(images), ours)


def rounded(command, name: str, *words: str) -> dict:
    result = command("export", name, "format=int8", *words)
    assert result.code == 0, result.err
    facts = json.loads(result.out.splitlines()[-1])
    assert facts["n"] == 60, "all test images: what it costs is measured, and not on a part"
    assert facts["max_difference"] > 0
    return facts


def test_int8_is_a_quarter_and_its_loss_is_measured(command, trained):
    network, dataset = student()
    rounded(command, KD, "pixels=true")
    facts = rounded(command, KD)
    with pytest.warns(FutureWarning):
        file = torch.jit.load(facts["file"])
    given = normalise(dataset.test.images, dataset.mean, dataset.std)
    with torch.no_grad():
        ours, theirs = network(given).logits, file(given)
    assert facts["max_difference"] == pytest.approx(float((ours - theirs).abs().max()), rel=1e-4)
    for key, logits in (("top1", ours), ("top1_exported", theirs)):
        right = (logits.argmax(1) == dataset.test.labels).double().mean()
        assert facts[key] == pytest.approx(100 * float(right))
    assert "quantized" in str(file.inlined_graph)
    size = sum(value.numel() for value in network.state_dict().values())
    assert Path(facts["file"]).stat().st_size < 4 * size / 2, "graph and scales are some of it"


@pytest.mark.slow
def test_a_network_of_two_libraries_goes_to_both(command):
    """timm's ResNet18 has the keys of torchvision's; it resizes and normalises for itself."""
    own = ["student.size=16", "student.mean=[0.4,0.4,0.4]", "student.std=[0.2,0.2,0.2]"]
    words = ["student=timm", "student.model=resnet18", "schedule.milestones=[]"]
    assert command("train", *SHORT, *words, *own).code == 0
    name = "synthetic-none-resnet18-ce-s0"
    for style in ("timm", "torchvision"):
        assert exported(command, name, "format=safetensors", f"keys={style}")["max_difference"] == 0
    folder = Path(exported(command, name, "format=hub", "keys=timm")["file"])
    config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    assert (config["input_size"], config["mean"]) == ([3, 16, 16], [0.4] * 3)
    assert "mean [0.4, 0.4, 0.4]" in (folder / "README.md").read_text()
    line = command("export", name, "format=safetensors").error_line
    assert line == "repdistiller has no network like resnet18: choose keys=timm or torchvision"
    assert "cannot quantise this network" in command("export", name, "format=int8").error_line


@pytest.mark.slow
def test_a_vit_cut_to_size_keeps_its_settings(command):
    settings = "student.settings={img_size: 32, patch_size: 16, depth: 1}"
    words = ["student=timm", "student.model=vit_tiny_patch16_224", "schedule.milestones=[]"]
    assert command("train", *SHORT, *words, settings).code == 0
    name = "synthetic-none-vit_tiny_patch16_224-ce-s0"
    rounded(command, name)
    folder = Path(exported(command, name, "format=hub", "keys=timm")["file"])
    assert len(timm.create_model(f"local-dir:{folder}", num_classes=10).blocks) == 1
    line = command("export", name, "format=hub", "keys=torchvision").error_line
    assert line == "torchvision has no network like vit_tiny_patch16_224: choose keys=timm"


@pytest.mark.slow
def test_a_student_with_another_head_is_a_graph_and_no_weights_of_anybody(command, trained):
    name = "synthetic-resnet14-resnet8-simkd-s0"
    assert exported(command, name, "format=torch_export")["max_difference"] <= 1e-5
    line = command("export", name, "format=safetensors").error_line
    assert line.startswith("resnet8 has another head than any resnet8 elsewhere (method=simkd")


def test_weights_under_the_zoos_own_keys(command, trained):
    facts = exported(command, KD, "format=safetensors")
    assert Path(facts["file"]).name.endswith(".repdistiller.safetensors")
    assert facts["max_difference"] == 0
    own = load_file(runs()[KD] / "student.safetensors")
    found = load_file(facts["file"])
    assert found.keys() == own.keys()
    result = command("evaluate", "student=resnet8", f"checkpoint={facts['file']}", *DATA[:1],
                     *DATA[-2:], "runtime=cpu")  # fmt: skip
    assert json.loads(result.out.splitlines()[-1])["n"] == 60


@pytest.mark.long
@pytest.mark.parametrize("style", ["timm", "torchvision"])
def test_a_folder_for_the_hub_under_the_keys_of_other_libraries(command, style):
    assert command("train", *SHORT, "student=ResNet18", "schedule.milestones=[]").code == 0
    name = "synthetic-none-ResNet18-ce-s0"
    facts = exported(command, name, "format=hub", f"keys={style}", "licence=cc-by-4.0")
    folder = Path(facts["file"])
    text = (folder / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "cc-by-4.0"
    assert front["datasets"] == ["synthetic"]
    (entry,) = front["model-index"][0]["results"]
    record = json.loads((runs()[name] / "record.json").read_text())
    assert entry["metrics"][0]["value"] == pytest.approx(record["top1_last"] / 100, abs=1e-6)
    assert "One seed: the spread" in text
    (python,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert f"import {style}" in python
    python = python.replace('"model.safetensors"', repr(str(folder / "model.safetensors")))
    names: dict = {}
    exec(python, names)  # what a reader of the card would run
    network, dataset = student(name)
    images = normalise(dataset.test.images[:4], dataset.mean, dataset.std)
    with torch.no_grad():
        torch.testing.assert_close(names["network"](images), network(images).logits)


def test_the_card_is_the_records(command, trained):
    facts = exported(command, KD, "format=hub")
    folder = Path(facts["file"])
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "config.json", "model.safetensors"),
    }
    text = (folder / "README.md").read_text()
    record = json.loads((runs()[KD] / "record.json").read_text())
    other = json.loads((runs()[KD[:-1] + "1"] / "record.json").read_text())
    mean = (record["top1_last"] + other["top1_last"]) / 2
    assert f"Mean over 2 seeds of the same configuration: {mean:.2f} ±" in text
    for fact in (record["student_sha256"], record["data"]["sha256"], record["protocol"]):
        assert fact in text
    assert f"| teacher resnet14 | {record['teachers'][0]['top1']:.2f}% here, sha256" in text
    assert "licence of the weights | not stated" in text
    assert "method=kd" in text
    assert "seed=0" in text


def bad(command, *words: str) -> str:
    line = command("export", *words).error_line
    assert not list(Path().glob("exports/*")), "nothing is left"
    return line


def test_bad_input(command, trained):
    assert "no run is named: kdbench-export RUN" in bad(command)
    assert "is 2 runs: name one of" in bad(command, KD[:-3])
    assert "did you mean 'onnx'?" in bad(command, KD, "format=onx")
    assert "opset must be 18 or later, not 11" in bad(command, KD, "format=onnx", "opset=11")
    line = bad(command, KD, "format=safetensors", "keys=timm")
    assert line == "timm has no network like resnet8: choose keys=repdistiller"
    assert "holds weights alone, and no normalisation" in bad(
        command, KD, "format=hub", "pixels=true"
    )
    Path("file").write_text("")
    assert "cannot write to file/in" in bad(command, KD, "out=file/in")


def test_a_file_that_answers_otherwise_is_removed(command, trained, monkeypatch):
    from kdbench.exporting import keys

    original = keys.state_dict_as

    def damaged(*arguments):
        tensors = original(*arguments)
        tensors["fc.bias"] = tensors["fc.bias"] + 0.01
        return tensors

    monkeypatch.setattr(keys, "state_dict_as", damaged)
    for form in ("safetensors", "hub"):
        line = bad(command, KD, f"format={form}")
        assert line.startswith("the exported file answers otherwise: outputs differ by 0.01 of ")


def test_a_checkpoint_of_anybody(command, trained):
    shutil.copy(runs()[KD] / "student.safetensors", "mine.safetensors")
    data = [word for word in DATA if word.startswith("dataset")]
    facts = exported(command, "resnet8:mine.safetensors", "format=safetensors", *data)
    assert facts["file"] == "exports/mine.repdistiller.safetensors"
    assert (
        "no data set is named: set dataset=NAME"
        in command("export", "resnet8:mine.safetensors").error_line
    )
