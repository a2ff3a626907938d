import pytest

from benchmarks.models import ABLATIONS, MARGIN_MM, Detector, parse_model, parse_models
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.plans.settings import default


def test_plain_trainers_are_called_by_their_names():
    naive, aware, published = parse_models(["nnUNetTrainer", "AnomalyAwareTrainer", "UNETPlusTrainer"])
    assert (naive.name, naive.trainer, naive.detector) == ("nnUNetTrainer", "BudgetedNNUNetTrainer", None)
    assert (aware.name, aware.trainer, aware.detector) == ("AnomalyAwareTrainer", "AnomalyAwareTrainer", Detector())
    assert (published.trainer, published.detector) == ("UNETPlusTrainer", None)


def test_settings_and_changed_parts_are_kept_apart():
    model = parse_model(
        "own=AnomalyAwareTrainer:alpha=1,channel=none,mirror_axes=[0,1],detector=0.25,weight=darker,margin=6"
    )
    assert model.name == "own"
    assert model.trainer == "AblationTrainer"
    assert model.settings == {
        "alpha": 1, "beta": 99.0, "error_channel": "published", "mirror_axes": [0, 1],
        "paste_anomalies": default("paste_anomalies"),
    }  # fmt: skip
    assert model.ablation == {"channel": "none", "weight": "darker"}
    assert model.detector == Detector(share=0.25, margin_mm=6.0)
    assert not model.mask_known
    assert parse_model("bound=AnomalyAwareTrainer:mask_known=true").mask_known


def test_a_model_of_two_maps_has_both_pre_stages():
    model = parse_model("larger=AnomalyAwareTrainer:larger_of=pasted")
    assert model.trainer == "AblationTrainer"
    assert model.detectors == (Detector(), parse_model("map=AnomalyAwareTrainer:family=pasted").detector)


def test_what_makes_up_the_method_is_noted_in_full():
    # Another version may have other defaults, and a comparison that goes on then must see that.
    names = ["AnomalyAwareTrainer", "AnomalyAwarePublishedTrainer", "UNETSTrainer", "nnUNetTrainer"]
    aware, as_published, published, baseline = parse_models(names)
    of_method = {name: default(name) for name in ("alpha", "beta", "error_channel", "paste_anomalies")}
    assert aware.settings == {**of_method, "mirror_axes": default("mirror_axes")}
    assert as_published.settings == {**aware.settings, "alpha": 10.0, "paste_anomalies": None}
    assert published.settings == {**of_method, "alpha": 10.0, "paste_anomalies": None}
    assert baseline.settings == {}


def test_settings_with_several_values_stay_whole():
    model = parse_model('p=nnUNetTrainer:mirror_axes=[],paste_anomalies={"strength":[1,9],"until":0.8},num_epochs=3')
    pasted = {"strength": [1, 9], "until": 0.8}
    assert model.settings == {"mirror_axes": [], "paste_anomalies": pasted, "num_epochs": 3}


def test_a_detector_at_half_resolution_is_built_as_such_in_the_network_too():
    half = parse_model("half=AnomalyAwareTrainer:detector_resolution=half")
    alone = parse_model("AnomalyPreStageTrainer:detector_resolution=half")
    assert half.detector == alone.detector != Detector()
    assert half.settings["detector_resolution"] == "half"
    with pytest.raises(UserError, match="expected one of full, half"):
        parse_model("AnomalyAwareTrainer:detector_resolution=third")


def test_a_detector_alone_is_the_one_that_a_segmentation_would_have():
    alone, with_it = parse_models(["a=AnomalyPreStageTrainer:margin=6", "b=AnomalyAwareTrainer:margin=6,alpha=1"])
    assert alone.detector == with_it.detector != Detector()
    assert (alone.segments, with_it.segments) == (False, True)


def test_detectors_that_differ_have_names_that_differ():
    all_of_them = [Detector(), Detector(0.1), Detector(margin_mm=2.5), Detector(margin_mm=25.0)]
    all_of_them += [Detector(augmentation="on"), Detector(augmentation="off"), Detector(0.1, 0.0, "off")]
    assert len({detector.name for detector in all_of_them}) == 7
    all_of_them.append(Detector(0.12))  # as many whole epochs as 0.1
    assert len({detector.title((2400, 1800), 100) for detector in all_of_them}) == 8
    assert Detector(margin_mm=MARGIN_MM).name == "detector100"


def test_a_detectors_title_tells_the_iterations_that_it_has():
    assert Detector(0.1).title((2400, 1800), 100) == "200 + 200 iterations (for 10 %), margin 18.23 mm"  # whole epochs
    assert Detector(0.1).title((500, 500), 250) == "250 + 250 iterations (for 10 %), margin 18.23 mm"  # one at least
    assert Detector().title((2400, 1800), 100) == "2400 + 1800 iterations, margin 18.23 mm"


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        (
            "AnomalyAwareTrainer:alfa=1",
            "changes alfa; of AnomalyAwareTrainer can be changed: alpha, augmentation, beta",
        ),
        ("AnomalyAwareTrainer:seed=7", "changes seed"),
        ("AnomalyAwareTrainer:inpainting_epochs=7", "changes inpainting_epochs"),
        ("nnUNetTrainer:alpha=3", "changes alpha; of nnUNetTrainer can be changed: mirror_axes"),
        ("UNETSTrainer:mirror_axes=[0]", "changes mirror_axes"),
        ("AnomalyAwareTrainer:alpha=oops", "has alpha 'oops'; expected a number from 0"),
        ("AnomalyAwareTrainer:channel=cubed", "expected 'channel' and 'weight' with one of"),
        ("AnomalyAwareTrainer:mask_known=False", "'mask_known' with true or false"),
        ("AnomalyAwareTrainer:detector=0", "expected a share from 0.01 to 1"),
        ("AnomalyAwareTrainer:detector=0.104", "expected a share from 0.01 to 1"),
        ("AnomalyAwareTrainer:detector=abc", "expected a share from 0.01 to 1"),
        ("nnUNetTrainerDA5", "names the trainer nnUNetTrainerDA5"),
        ("AnomalyPreStageTrainer:alpha=1", "changes alpha; of AnomalyPreStageTrainer can be changed: augmentation"),
        ("AnomalyAwareTrainer:margin=-1", "a margin of -1; expected mm from 0"),
        ("AnomalyAwareTrainer:margin=wide", "a margin of wide; expected mm from 0"),
        ("AnomalyAwareTrainer:augmentation=false", "the augmentation False; expected on or off"),
        ("AnomalyAwareTrainer:mask_known=true,margin=2", "expected one of them: the mask's is fixed"),
        ("nnUNetTrainer:margin=2", "changes margin"),
        ("UNETTransferTrainer", "names the trainer UNETTransferTrainer"),
        ("nnUNetTrainer:channel=none", "changes channel"),
        ("a__b=nnUNetTrainer", "'a__b' is not usable"),
        ("a b=nnUNetTrainer", "'a b' is not usable"),
    ],
)
def test_what_cannot_be_compared_is_refused(word, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_model(word)


def test_two_models_of_one_name_are_refused():
    with pytest.raises(UserError, match="several models are called nnUNetTrainer"):
        parse_models(["nnUNetTrainer", "nnUNetTrainer:mirror_axes=[]"])


def test_ablations_hold_each_part_alone_together_and_both_bounds():
    models = {model.name: model for model in parse_models(ABLATIONS)}
    # What the others are tested against does not mirror either.
    assert models[next(iter(models))].settings == {"mirror_axes": []}
    assert models["nnUNetTrainer"].settings == {}
    assert models["channel_only"].ablation == {"weight": "none"}
    assert models["focal_only"].ablation == {"channel": "none"}
    for name in ("AnomalyAwareTrainer", "AnomalyAwarePublishedTrainer"):
        assert models[name].trainer == name
    assert models["mask_known"].mask_known
    assert models["shuffled"].ablation == {"channel": "shuffled", "weight": "shuffled"}
