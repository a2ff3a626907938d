import pytest
import torch

from nnunetv2_anomaly.detectors.artefact import (
    Artefact,
    add_what_validation_found,
    check_fold_rule,
    find_checkpoint,
    install_detector,
    read_artefact,
)
from nnunetv2_anomaly.detectors.base import Contract
from nnunetv2_anomaly.detectors.inpainting.networks import AnomalyDetector, PreStageNetwork, ReconstructionNetwork
from nnunetv2_anomaly.errors import UserError

COMMAND = "nnUNetv2_train 801 3d_fullres 2 -tr AnomalyPreStageTrainer"


def make_detector(features=2, code_length=3, patch_size=(8, 8)):
    return AnomalyDetector(
        num_channels=1, patch_size=patch_size, strides=[(2, 2)], features=features, code_length=code_length
    )


def artefact(cases=("a", "b", "c"), **changes):
    known = {
        "contract": AnomalyDetector.contract,
        "state": {},
        "fitted_on": frozenset(cases),
        "data": None,
        "quality": {"mse_erased": 0.5},
        "sources": {},
        "comparable": True,
        "finished": True,
        "path": "pre.pth",
    }
    return Artefact(**{**known, **changes})


def write_checkpoint(path, detector=None, **changes):
    network = PreStageNetwork(ReconstructionNetwork(1, [(2, 2)], 2), detector or make_detector())
    content = {
        "network_weights": network.state_dict(),
        "trainer_name": "AnomalyPreStageTrainer",
        "anomaly_detector": artefact(("a", "b"), **changes).description(),
    }
    torch.save(content, path)
    return network


# ------------------------------------------------------------------------------------------- finding the checkpoint


def test_finished_checkpoint_is_found_in_the_model_folder(tmp_path):
    (tmp_path / "fold_2").mkdir()
    checkpoint = tmp_path / "fold_2" / "checkpoint_final.pth"
    checkpoint.touch()
    assert find_checkpoint(tmp_path, 2, COMMAND) == checkpoint


def test_finished_checkpoint_is_found_where_the_folds_own_folder_is_given(tmp_path):
    (tmp_path / "checkpoint_final.pth").touch()
    assert find_checkpoint(tmp_path, 2, COMMAND) == tmp_path / "checkpoint_final.pth"


def test_environment_variables_in_the_folder_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("PRESTAGE_BASE", str(tmp_path))
    (tmp_path / "checkpoint_final.pth").touch()
    assert find_checkpoint("$PRESTAGE_BASE", "all", COMMAND) == tmp_path / "checkpoint_final.pth"


def test_missing_prestage_names_the_file_and_ends_with_the_command(tmp_path):
    with pytest.raises(UserError, match="fold 2 has not been trained") as caught:
        find_checkpoint(tmp_path / "nowhere", 2, COMMAND)
    assert str(caught.value).endswith(f"run: {COMMAND}")
    assert "checkpoint_final.pth does not exist" in str(caught.value)


@pytest.mark.parametrize("name", ["checkpoint_latest.pth", "checkpoint_best.pth"])
def test_unfinished_prestage_is_to_be_continued(tmp_path, name):
    (tmp_path / "fold_2").mkdir()
    (tmp_path / "fold_2" / name).touch()
    with pytest.raises(UserError, match="fold 2 is not finished") as caught:
        find_checkpoint(tmp_path, 2, COMMAND)
    assert str(caught.value).endswith(f"run: {COMMAND} --c")


# ------------------------------------------------------------------------------------------- reading the checkpoint


def test_detector_is_read_with_its_cases_and_its_quality(tmp_path):
    network = write_checkpoint(tmp_path / "final.pth")
    found = read_artefact(tmp_path / "final.pth")
    assert (found.fitted_on, found.quality) == ({"a", "b"}, {"mse_erased": 0.5})
    assert found.contract == AnomalyDetector.contract
    expected = network.detector.state_dict()
    assert found.state.keys() == expected.keys()
    assert all(torch.equal(found.state[name], value) for name, value in expected.items())


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.95])
def test_truncated_checkpoint_is_told_by_its_path(tmp_path, kept):
    path = tmp_path / "final.pth"
    write_checkpoint(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=r"final\.pth cannot be read"):
        read_artefact(path)


@pytest.mark.parametrize(
    "content", [b"not a checkpoint", b"\0" * 100, b"c", b"\x80\x04", b"PK\x03\x04", b"version https"]
)
def test_file_that_is_no_checkpoint_is_told_by_its_path(tmp_path, content):
    path = tmp_path / "final.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"final\.pth cannot be read"):
        read_artefact(path)


def test_missing_file_and_folder_are_told_by_their_path(tmp_path):
    for path in (tmp_path / "nothing.pth", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            read_artefact(path)


@pytest.mark.parametrize(
    ("content", "writer"),
    [({"trainer_name": "nnUNetTrainer"}, "nnUNetTrainer"), ({}, "unknown"), ([1, 2], "unknown")],
)
def test_checkpoint_of_another_trainer_is_told_by_that_trainer(tmp_path, content, writer):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=f"written by the trainer {writer} and describes no detector"):
        read_artefact(tmp_path / "other.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    detector = make_detector()
    detector.intensity_high.fill_(value)
    write_checkpoint(tmp_path / "final.pth", detector)
    with pytest.raises(UserError, match="weights that are NaN or infinite"):
        read_artefact(tmp_path / "final.pth")


def test_quality_of_a_later_validation_is_added_and_the_rest_stays(tmp_path):
    path = tmp_path / "final.pth"
    write_checkpoint(path)
    before = torch.load(path, weights_only=True)
    add_what_validation_found(path, {"lesion_auc": 0.75}, {"value": 0.3, "rule": "labels"})
    after = torch.load(path, weights_only=True)
    assert after["anomaly_detector"].pop("threshold") == {"value": 0.3, "rule": "labels"}
    before["anomaly_detector"].pop("threshold")
    assert after["anomaly_detector"].pop("quality") == {"mse_erased": 0.5, "lesion_auc": 0.75}
    before["anomaly_detector"].pop("quality")
    assert after["anomaly_detector"] == before["anomaly_detector"]
    assert all(torch.equal(after["network_weights"][name], value) for name, value in before["network_weights"].items())


# ---------------------------------------------------------------------------------------------------- installing it


def test_installed_detector_has_the_trained_weights_and_the_trained_intensity_range():
    source, target = make_detector(), make_detector()
    source.set_intensity_range(torch.tensor([-1.0]), torch.tensor([2.0]))
    install_detector(target, artefact(state=source.state_dict()))
    assert all(torch.equal(target.state_dict()[name], value) for name, value in source.state_dict().items())


@pytest.mark.parametrize(
    ("other", "part"),
    [({"code_length": 4}, "compressor"), ({"patch_size": (8, 12)}, "compressor"), ({"features": 3}, "reconstructor")],
)
def test_detector_that_does_not_fit_is_told_by_a_tensor_and_both_shapes(other, part):
    there, here = make_detector(**other).state_dict(), make_detector().state_dict()
    with pytest.raises(UserError, match=r"pre\.pth does not fit") as caught:
        install_detector(make_detector(), artefact(state=there))
    sentence = str(caught.value)
    assert "same patch size, strides, image channels and detector settings" in sentence
    name = sentence.split("'")[1]
    assert name.startswith(f"{part}.")
    assert tuple(there[name].shape) != tuple(here[name].shape)
    assert f"is {tuple(there[name].shape)} there and {tuple(here[name].shape)} here" in sentence


def test_detector_of_another_family_is_refused_naming_both():
    other = Contract(family="median", error_channels=1, dimensions=(2,), window="any")
    with pytest.raises(UserError, match=r"of the family 'median'.*expected 'inpainting'"):
        install_detector(make_detector(), artefact(contract=other))


def test_detector_that_is_not_trained_to_the_end_is_refused():
    with pytest.raises(UserError, match=r"before its detector was trained.*--c"):
        install_detector(make_detector(), artefact(state=make_detector().state_dict(), finished=False))


@pytest.mark.parametrize("change", ["missing", "superfluous"])
def test_tensor_that_only_one_side_has_is_told_by_name(change):
    state = dict(make_detector().state_dict())
    if change == "missing":
        del state["intensity_low"]
    else:
        state["extra"] = torch.zeros(2)
    expected = {
        "missing": "'intensity_low' is nothing there",
        "superfluous": r"'extra' is \(2,\) there and nothing here",
    }
    with pytest.raises(UserError, match=expected[change]):
        install_detector(make_detector(), artefact(state=state))


def test_detector_that_does_not_fit_leaves_the_network_as_it_was():
    target = make_detector()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(UserError):
        install_detector(target, artefact(state=make_detector(features=3).state_dict()))
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


# --------------------------------------------------------------------------------------------------------- fold rule


def test_detector_that_saw_no_validation_case_is_accepted_in_silence():
    assert check_fold_rule(artefact(), ["d", "e"], allowed=False) is None


def test_detector_that_saw_validation_cases_is_refused_naming_them_and_the_setting():
    with pytest.raises(UserError, match=r"trained on 2 of this fold's validation cases \(b, c\)") as caught:
        check_fold_rule(artefact(), ["c", "d", "b"], allowed=False)
    assert "'allow_detector_trained_on_validation_cases'" in str(caught.value)


def test_many_validation_cases_are_named_by_the_first_eight():
    cases = [f"case_{number}" for number in range(10)]
    with pytest.raises(UserError, match=r"10 of .* \(case_0, case_1, .*case_7 and 2 more\)"):
        check_fold_rule(artefact(cases), cases, allowed=False)


def test_detector_that_saw_validation_cases_is_accepted_with_a_sentence_where_allowed():
    sentence = check_fold_rule(artefact(), ["c"], allowed=True)
    assert sentence.endswith("accepted because 'allow_detector_trained_on_validation_cases' is set")
