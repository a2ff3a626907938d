"""Bad inputs of every verb: one sentence and a status that is not 0, no traceback, and the input as it was."""

import gzip
import json
import os
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_anomaly.command_line.main import main

LABELS = {"background": 0, "bone": 1, "bone_lesion": 2}


def label_map() -> np.ndarray:
    voxels = np.zeros((6, 8, 10), np.uint8)
    voxels[1:5, 2:7, 2:8] = 1
    voxels[2:4, 3:5, 3:6] = 2
    return voxels


def save(voxels: np.ndarray, path: Path, **pose) -> Path:
    image = sitk.GetImageFromArray(voxels, isVector=voxels.ndim == 4)
    image.SetSpacing((0.5, 0.75, 2.0))
    for name, value in pose.items():
        getattr(image, f"Set{name}")(value)
    sitk.WriteImage(image, str(path))
    return path


def description(folder: Path, **changes) -> None:
    content = {"channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": 2, "file_ending": ".nii.gz"} | changes
    text = json.dumps({key: value for key, value in content.items() if value is not ...})
    (folder / "dataset.json").write_text(text.replace('"HUGE"', "1e400"))


@pytest.fixture
def folder(tmp_path):
    """References, predictions and images of two cases."""
    for name in ("ref", "pred", "images"):
        (tmp_path / name).mkdir()
        for case in ("a", "b"):
            save(label_map(), tmp_path / name / (f"{case}_0000.nii.gz" if name == "images" else f"{case}.nii.gz"))
    description(tmp_path / "pred")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "letters.json").write_text('[{"val": "ab"}]')
    (tmp_path / "nested.json").write_text('[{"val": [["a"], ["b"]]}]')
    return tmp_path


# What is done to the prediction of case b, and what is said of it


def spoiled_header(path: Path, place: int, content: bytes) -> None:
    header = bytearray(gzip.decompress(path.read_bytes()))
    header[place : place + len(content)] = content
    path.write_bytes(gzip.compress(bytes(header)))


def nifti(path: Path, voxels: np.ndarray, affine=None, **header) -> None:
    image = nibabel.Nifti1Image(voxels, np.diag([0.5, 0.75, 2.0, 1]) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)


def replaced(make):
    def spoil(path: Path) -> None:
        path.unlink()
        make(path)

    return spoil


def float32(value: float) -> bytes:
    return np.float32(value).tobytes()


WHOLE = label_map().T.copy()
FILES = {
    "folder": (replaced(Path.mkdir), "no file, but a folder, a pipe, or a link to nothing"),
    "dead link": (replaced(lambda path: path.symlink_to("nowhere")), "no file, but a folder"),
    "link to itself": (replaced(lambda path: path.symlink_to(path.name)), "no file, but a folder|link"),
    "pipe": (replaced(os.mkfifo), "no file, but a folder, a pipe"),
    "nothing in it": (lambda path: path.write_bytes(b""), "cut short or damaged|cannot be read"),
    "text": (lambda path: path.write_text("no image"), "cut short or damaged|cannot be read"),
    "packed text": (lambda path: path.write_bytes(gzip.compress(b"no image")), "cut short or damaged|cannot be read"),
    "half of it": (lambda path: os.truncate(path, path.stat().st_size // 2), "cut short or damaged"),
    "one bit": (lambda path: path.write_bytes(path.read_bytes()[:-6] + b"\1" + path.read_bytes()[-5:]), "damaged"),
    "rubbish after it": (lambda path: path.write_bytes(path.read_bytes() + b"rubbish"), "damaged|cannot be read"),
    "unknown type": (lambda path: spoiled_header(path, 70, b"\x0f\x27"), "data code 9999 not recognized"),
    "no size": (lambda path: spoiled_header(path, 42, b"\0\0"), "b.nii.gz"),
    "negative size": (lambda path: spoiled_header(path, 42, b"\xff\xff"), "b.nii.gz"),
    "far too large": (lambda path: spoiled_header(path, 42, b"\xff\x7f" * 3), "cut short or damaged"),
    "no spacing": (lambda path: spoiled_header(path, 80, float32(0)), "has a spacing of 0 x 0.75 x 2 mm"),
    "negative spacing": (lambda path: spoiled_header(path, 84, float32(-1)), "has a spacing of 0.5 x -1 x 2 mm"),
    "spacing NaN": (lambda path: spoiled_header(path, 88, float32(np.nan)), "has a spacing of 0.5 x 0.75 x nan mm"),
    "metres": (lambda path: nifti(path, WHOLE, xyzt_units=1), "unit metre; expected mm"),
    "pose of zeros": (lambda path: spoiled_header(path, 280, bytes(16)), "two poses, qform and sform"),
    "pose NaN": (lambda path: spoiled_header(path, 296, float32(np.nan)), "pose with infinite numbers or NaN"),
    "spacing beside a pose": (lambda path: nifti(path, WHOLE, pixdim=[1, 3, 3, 3, 0, 0, 0, 0]), "in its field pixdim"),
    "NIfTI-2": (lambda path: nibabel.save(nibabel.Nifti2Image(WHOLE, np.eye(4)), path), "is a NIfTI-2 file"),
    "four axes": (lambda path: nifti(path, WHOLE[..., None].repeat(2, 3)), "4 dimensions"),
    "colours": (lambda path: save(label_map()[..., None].repeat(3, 3), path), r"3 value\(s\) a voxel"),
    "complex numbers": (lambda path: nifti(path, WHOLE.astype(np.complex64)), "complex numbers"),
    "halves": (lambda path: save(label_map() + np.float32(0.5), path), "of its voxels are no whole numbers"),
    "below zero": (lambda path: save(label_map().astype(np.int16) - 1, path), "of its voxels are no whole numbers"),
    "NaN": (lambda path: save(label_map() + np.float32(np.nan), path), "infinite voxels or NaN"),
    "infinite": (lambda path: save(label_map() + np.float32(np.inf), path), "infinite voxels or NaN"),
    "unknown label": (lambda path: save(label_map() * 50, path), "holds unknown labels"),
    "a slope of 1.01": (lambda path: spoiled_header(path, 112, float32(1.01)), "scl_slope|whole numbers"),
}  # fmt: skip

#: only where a prediction is compared with a reference
GRIDS = {
    "shifted": (lambda path: save(label_map(), path, Origin=(1, 0, 0)), "lies on another grid.*origin"),
    "of another spacing": (
        lambda path: save(label_map(), path, Spacing=(0.6, 0.75, 2)),
        "another grid.*spacing",
    ),
    "mirrored": (lambda path: save(label_map(), path, Direction=(-1, 0, 0, 0, 1, 0, 0, 0, 1)), "lies on another grid"),
    "cropped": (lambda path: save(label_map()[1:], path), "lies on another grid.*size"),
    "of two axes": (lambda path: save(label_map()[2], path, Spacing=(0.5, 0.75)), "lies on another grid|dimensions"),
}

DESCRIPTIONS = {
    "no labels": ({"labels": ...}, "dataset.json"),
    "a list of labels": ({"labels": ["bone"]}, "dataset.json"),
    "a label that is a word": ({"labels": {"bone": "one"}}, "dataset.json"),
    "a label that is infinite": ({"labels": {"background": 0, "bone": "HUGE"}}, "dataset.json"),
    "a label below zero": ({"labels": {"background": 0, "bone": -1}}, "dataset.json"),
    "a label that is no whole number": ({"labels": {"background": 0, "bone": 1.5}}, "dataset.json"),
    "background alone": ({"labels": {"background": 0}}, "no label but background"),
    "no ending": ({"file_ending": ...}, "dataset.json"),
    "an ending that nothing reads": (
        {"file_ending": ".jpeg2000"},
        "that end in .jpeg2000|no reader",
    ),
    "an unknown reader": ({"overwrite_image_reader_writer": "MyReader"}, "no reader MyReader"),
    "a reader that is a number": ({"overwrite_image_reader_writer": 5}, "overwrite_image_reader_writer is 5"),
    "two values to ignore": ({"labels": {**LABELS, "ignore": [3, 4]}}, "label ignore is .3, 4.; expected one value"),
    "a lesion in a number": (
        {"label_roles": {"lesions": {"bone_lesion": 5}}},
        "are lesions: bone_lesion: 5",
    ),
    "a lesion in a list": ({"label_roles": {"lesions": {"bone_lesion": ["bone"]}}}, "label_roles are lesions"),
    "roles of no label": ({"label_roles": {"lesions": ["cyst"]}}, "label_roles name cyst"),
    "roles that are none": ({"label_roles": ["bone"]}, "label_roles are"),
}

#: verb and options, with {} for the folder -> the sentence
OPTIONS = [
    ("evaluate -ref {}/ref -pred {}/nowhere -o {}/o", "names no folder that exists"),
    ("evaluate -ref {}/nowhere -pred {}/pred -o {}/o", "does not exist; expected segmentations"),
    ("evaluate -ref {}/images -pred {}/pred -o {}/o", "are images, by their names"),
    ("evaluate -ref {}/ref -pred {}/pred -o {}/pred/a.nii.gz", "cannot be written to"),
    ("evaluate -ref {}/ref -pred {}/pred -o {}/ref", "is not empty and holds no evaluation"),
    ("evaluate -ref {}/ref -pred {}/pred {}/pred -o {}/o", "two models are called pred"),
    ("evaluate -ref {}/ref -pred {}/pred -o {}/o -np 0", "-np is 0; expected 1 or more"),
    ("evaluate -ref {}/ref -pred {}/pred -o {}/o --folds 0", "the folds of the cases are unknown"),
    ("evaluate -ref {}/ref -pred {}/pred -o {}/o --splits {}/pred/dataset.json", "splits_final.json"),
    (
        "evaluate -ref {}/ref -pred {}/pred -o {}/o --subjects {}/pipe",
        r"as a table \(it is a pipe\)",
    ),
    ("evaluate -ref {}/ref -pred {}/pred -o {}/o -djfile {}/pipe", r"pipe cannot be read \(it is a pipe\)"),
    ("evaluate -ref {}/ref -pred {}/pred -o {}/o --splits {}/letters.json", "val is no list of cases"),
    ("evaluate -ref {}/ref -pred {}/pred -o {}/o --splits {}/nested.json", "val is no list of cases"),
    ("evaluate -ref {}/ref -pred {}/pred -o {}/o --subjects {}/pred/a.nii.gz", "a.nii.gz"),
    ("evaluate -ref {}/ref -pred {}/pred -o {}/o --subjects {}/nowhere.csv", "nowhere.csv"),
    ("evaluate -ref {}/ref -pred {}/pred -o {}/o --group_limit 2", "--group_by and --group_limit are of a table"),
    ("evaluate -ref {}/ref -pred {}/pred -o {}/o --lesion_probability 2", "--lesion_probability is 2.0"),
    ("evaluate -ref {}/ref -pred {}/pred -o {}/o --max_distance_mm nan", "--max_distance_mm is nan"),
    ("evaluate -ref {}/ref -pred {}/pred -o {}/o --lesions bone_lesion=nosuch", "nosuch is no label"),
    ("evaluate -ref {}/ref -pred {}/pred -o {}/o --images {}/ref", "images"),
    ("evaluate -ref {}/ref -pred {}/pred -o {}/o --error_images {}/nowhere", "nowhere"),
    ("postprocess -i {}/pred -o {}/pred", "-i and -o are both"),
    ("postprocess -i {}/nowhere -o {}/o", "is no folder"),
    ("postprocess -i {}/pred -o {}/o --lesion_probability 0.5", "has no softmax output"),
    ("postprocess -i {}/pred -o {}/o --anatomy bone --lesions bone", "is named by --anatomy and as a lesion"),
    ("postprocess -i {}/pred -o {}/o -djfile {}/nowhere.json", "nowhere.json cannot be read"),
    ("simulate -i {}/nowhere -o {}/o", "nowhere"),
    ("simulate -o {}/o", "phantoms"),
    ("simulate --phantoms -1 -o {}/o", "-1"),
    ("simulate --phantoms 1 --size 0 0 0 -o {}/o", "size"),
    ("simulate --phantoms 1 --size 100000 100000 100000 -o {}/o", "size|memory"),
    ("simulate --phantoms 1 --spacing 0 1 1 -o {}/o", "spacing"),
    ("simulate --phantoms 1 --spacing nan 1 1 -o {}/o", "spacing"),
    ("simulate --phantoms 1 --size 16 16 16 --extra_lesions 1e9 -o {}/o", "extra_lesions"),
    ("simulate --phantoms 1 --seed -1 -o {}/o", "seed"),
    ("simulate --phantoms 1 -d -5 -o {}/o", "-5"),
    ("simulate --phantoms 1 -d 5 --name a__b -o {}/o", "name is"),
    ("simulate -i {}/pred -o {}/pred", "pred"),
    ("convert oai_zib --zib {}/nowhere --oai {}/images -d 5", "nowhere"),
    ("convert oaizib_cm --cm {}/images -d 5", "images"),
    (
        "convert oai_zib_uq --labels {}/pred --images {}/images -d 5 --splits {}/nowhere.txt",
        "no image named by its subject",
    ),
    ("error_images -i {}/images -o {}/o -d 999 -device cpu", "999"),
    ("error_images -i {}/nowhere -o {}/o -d 999 -device cpu", "999|nowhere"),
    ("plan_whole_image -d 999", "999"),
    ("doctor --model {}/nowhere.zip", "nowhere.zip"),
    ("doctor --model {}/pred", "pred"),
    ("env --base {}/pred/a.nii.gz", "cannot be written to"),
]


def state(folder: Path) -> dict[str, object]:
    found = sorted(path for name in ("ref", "pred", "images") for path in (folder / name).rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else path.lstat().st_mode for path in found}


def told(capsys, folder: Path, words: list[str]) -> str:
    """The sentence on standard error of a command that fails, and changes nothing of its input."""
    before = state(folder)
    try:
        status = main(words)
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status in (1, 2, 3), captured.out
    assert "Traceback" not in captured.out + captured.err
    assert state(folder) == before
    return captured.err + captured.out


@pytest.mark.parametrize("spoil", FILES)
@pytest.mark.parametrize("verb", ["evaluate", "postprocess"])
def test_a_prediction_at_fault(folder, capsys, monkeypatch, verb, spoil):
    # The report on the other cases takes seconds.
    monkeypatch.setattr("nnunetv2_anomaly.evaluation.run.write_evaluation", lambda *_, **__: None)
    change, sentence = FILES[spoil]
    change(folder / "pred" / "b.nii.gz")
    places = {"evaluate": ["-ref", f"{folder}/ref", "-pred", f"{folder}/pred"], "postprocess": ["-i", f"{folder}/pred"]}
    assert re.search(sentence, told(capsys, folder, [verb, *places[verb], "-o", f"{folder}/o", "-np", "1"]))


@pytest.mark.parametrize("spoil", GRIDS)
def test_a_prediction_on_another_grid(folder, capsys, monkeypatch, spoil):
    monkeypatch.setattr("nnunetv2_anomaly.evaluation.run.write_evaluation", lambda *_, **__: None)
    change, sentence = GRIDS[spoil]
    change(folder / "pred" / "b.nii.gz")
    words = ["evaluate", "-ref", f"{folder}/ref", "-pred", f"{folder}/pred", "-o", f"{folder}/o", "-np", "1"]
    assert re.search(sentence, told(capsys, folder, words))


@pytest.mark.parametrize("spoil", DESCRIPTIONS)
def test_a_dataset_json_at_fault(folder, capsys, spoil):
    changes, sentence = DESCRIPTIONS[spoil]
    description(folder / "pred", **changes)
    said = told(capsys, folder, ["postprocess", "-i", f"{folder}/pred", "-o", f"{folder}/o", "-np", "1"])
    assert re.search(sentence, said)
    assert not re.search(r"\{'|\['", said)


@pytest.mark.parametrize(("line", "sentence"), OPTIONS, ids=[line.replace("{}/", "") for line, _ in OPTIONS])
def test_options_that_cannot_be(folder, capsys, monkeypatch, line, sentence):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(folder / name))
        (folder / name).mkdir()
    assert re.search(sentence, told(capsys, folder, [word.replace("{}", str(folder)) for word in line.split()]))
