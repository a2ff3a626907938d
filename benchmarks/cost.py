"""What the anomaly-aware network costs beside nnU-Net's own, measured side by side in one run.

    python -m benchmarks.cost --patch 64 96 96 --batch 2 --device cpu

Both networks come from the same plan: nnU-Net's own topology for the patch size, 32 to 320 feature maps. Training is
what a trainer's step does (forward, loss with deep supervision, backward, clipping, SGD), prediction the forward pass
of one window. The two alternate, so that whatever else the machine does hits both. Printed are medians, quartiles and
the ratio; then where the difference goes, and what other ways of computing the detector would take and change.
"""

from __future__ import annotations

import argparse
import copy
import platform
from collections.abc import Callable
from contextlib import nullcontext
from time import perf_counter

import numpy as np
import torch
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn

from nnunetv2_anomaly.segmenters.loss import AnomalyAwareLoss, DiceAndFocalCrossEntropy, average_to, focal_weight
from nnunetv2_anomaly.trainers import AnomalyAwareTrainer
from nnunetv2_anomaly.training.pasting import PasteAnomalies, with_pasting

NUM_CLASSES = 7


def planned_configuration(patch_size: list[int], spacing: list[float]) -> ConfigurationManager:
    """A configuration as nnU-Net's default planner writes it for this patch size and spacing (mm)."""
    _, strides, kernels, patch_size, _ = get_pool_and_conv_props(spacing, patch_size, 4, 999999)
    stages = len(strides)
    keywords = {
        "n_stages": stages,
        "features_per_stage": [min(32 * 2**stage, 320) for stage in range(stages)],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [list(kernel) for kernel in kernels],
        "strides": [list(stride) for stride in strides],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": keywords,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    return ConfigurationManager(
        {"patch_size": [int(voxels) for voxels in patch_size], "spacing": spacing, "architecture": architecture}
    )


def deep_supervision_weights(num_outputs: int) -> np.ndarray:
    """nnU-Net's weights of the output scales: halved from scale to scale, the lowest left out, sum 1."""
    weights = np.array([0.5**scale for scale in range(num_outputs)])
    weights[-1] = 0
    return weights / weights.sum()


def interleaved(actions: dict[str, Callable[[], None]], repeats: int, device: torch.device) -> dict[str, np.ndarray]:
    """Seconds of each action, called in turn, after two warm-up rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for repeat in range(repeats + 2):
        for name, action in actions.items():
            _wait_for(device)
            began = perf_counter()
            action()
            _wait_for(device)
            if repeat >= 2:
                seconds[name].append(perf_counter() - began)
    return {name: np.array(values) for name, values in seconds.items()}


def _wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def show(title: str, seconds: dict[str, np.ndarray], baseline: str) -> None:
    print(f"\n{title}")
    for name, values in seconds.items():
        low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
        ratio = np.median(values / seconds[baseline])
        print(f"  {name:32s} {median * 1e3:9.1f} ms  [{low * 1e3:.1f}, {high * 1e3:.1f}]  ratio {ratio:.3f}")


def show_detector_variants(
    title: str, detector: nn.Module, image: Tensor, arguments: argparse.Namespace, autocast: Callable
) -> None:
    """Seconds of other ways to compute the error image of (B, C, *patch), and how far off they are at most."""
    format_of = {4: torch.channels_last, 5: torch.channels_last_3d}[image.ndim]
    channels_last = copy.deepcopy(detector).to(memory_format=format_of)
    ways: dict[str, Callable[[], Tensor]] = {
        "as it is": lambda: detector(image),
        "channels-last": lambda: channels_last(image.contiguous(memory_format=format_of)),
    }
    if image.device.type in ("cuda", "cpu"):  # autocast of others is not there in every torch
        ways["bfloat16"] = lambda: _in_bfloat16(detector, image)
    if arguments.compile:
        torch.compiler.reset()  # else the second size would be compiled for sizes that vary
        compiled = torch.compile(detector)
        ways["compiled"] = lambda: compiled(image)

    def without_gradients(way: Callable[[], Tensor]) -> Tensor:
        with torch.inference_mode(), autocast():
            return way()

    actions = {f"  {name}": lambda way=way: without_gradients(way) for name, way in ways.items()}
    show(f"The detector, {title}", interleaved(actions, arguments.repeats, image.device), "  as it is")
    exact = without_gradients(ways["as it is"])
    for name, way in list(ways.items())[1:]:
        deviation = (without_gradients(way) - exact).abs().max() / exact.max()
        print(f"  {name}: off by at most {deviation.item():.1e} of the largest error")


def _in_bfloat16(detector: nn.Module, image: Tensor) -> Tensor:
    with torch.autocast(image.device.type, torch.bfloat16):
        return detector(image)


def augmentations(configuration: ConfigurationManager, spacing: list[float]) -> dict[str, Callable[[], None]]:
    """nnU-Net's augmentation of one training patch, without pasted anomalies and with them; a third of it is bone."""
    patch, third = np.array(configuration.patch_size), int(configuration.patch_size[1]) // 3
    turns = (-np.pi / 6, np.pi / 6)
    size = get_patch_size(patch, turns, turns, turns, (0.85, 1.25))
    scales = (1 / np.cumprod(np.vstack(configuration.pool_op_kernel_sizes), axis=0)).tolist()[:-1]
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, *size)).astype(np.float32))
    labels = torch.zeros((1, *size), dtype=torch.int16)
    labels[:, :, size[1] // 2 - third // 2 : size[1] // 2 + third // 2] = 1

    def augmentation(**options: float) -> Callable[[], None]:
        transforms = nnUNetTrainer.get_training_transforms(patch, turns, scales, (), False, [False])
        if options:
            transforms = with_pasting(transforms, PasteAnomalies(spacing, [[1]], **options))
        return lambda: transforms(image=image, segmentation=labels) and None

    return {
        "nnU-Net": augmentation(),
        "pasting into every other patch": augmentation(probability=0.5),
        "pasting into every patch": augmentation(probability=1.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, nargs=3, default=[64, 96, 96], help="voxels, nnU-Net's axis order")
    parser.add_argument("--spacing", type=float, nargs=3, default=[0.7, 0.3646, 0.3646], help="mm, same order")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("-device", "--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile both networks, nnU-Net's default on CUDA")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # as nnU-Net's commands set it

    configuration = planned_configuration(arguments.patch, arguments.spacing)
    patch = configuration.patch_size
    networks: dict[str, nn.Module] = {
        "nnU-Net": nnUNetTrainer.build_network_architecture(None, configuration, 1, NUM_CLASSES, True).to(device),
        "anomaly-aware": AnomalyAwareTrainer.build_network_architecture(None, configuration, 1, NUM_CLASSES, True).to(
            device
        ),
    }
    aware = networks["anomaly-aware"]
    image = torch.randn(arguments.batch, 1, *patch, device=device)
    with torch.no_grad():
        sizes = [logits.shape[2:] for logits in networks["nnU-Net"](image)]
    targets = [torch.randint(0, NUM_CLASSES, (arguments.batch, 1, *size), device=device) for size in sizes]
    weights = deep_supervision_weights(len(sizes))
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    planned_loss = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
    losses = {
        "nnU-Net": DeepSupervisionWrapper(planned_loss, weights),
        "anomaly-aware": AnomalyAwareLoss(
            DeepSupervisionWrapper(DiceAndFocalCrossEntropy(planned_loss.dc, 10.0, None), weights),
            99.0,
            lambda: aware.latest_error_image,
        ),
    }
    run = {name: torch.compile(network) if arguments.compile else network for name, network in networks.items()}
    optimizers = {
        "nnU-Net": torch.optim.SGD(networks["nnU-Net"].parameters(), 1e-2, momentum=0.99, nesterov=True),
        "anomaly-aware": torch.optim.SGD(aware.segmenter.parameters(), 1e-2, momentum=0.99, nesterov=True),
    }
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")

    def autocast():
        return torch.autocast("cuda") if device.type == "cuda" else nullcontext()

    def train_step(name: str) -> None:
        optimizers[name].zero_grad(set_to_none=True)
        with autocast():
            loss = losses[name](run[name](image), targets)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizers[name])
        torch.nn.utils.clip_grad_norm_(networks[name].parameters(), 12)
        scaler.step(optimizers[name])
        scaler.update()

    def predict(name: str) -> None:
        with torch.inference_mode(), autocast():
            run[name](window)

    def part(function: Callable[[], object]) -> Callable[[], None]:
        def action() -> None:
            with torch.no_grad(), autocast():
                function()

        return action

    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, device {device}")
    if device.type == "cuda":
        print(torch.cuda.get_device_name())
    print(f"patch {patch}, batch {arguments.batch}, strides {configuration.pool_op_kernel_sizes}")

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in nnU-Net's loading processes
    loading = interleaved(augmentations(configuration, arguments.spacing), 4 * arguments.repeats, torch.device("cpu"))
    show("Augmentation of one patch, one thread", loading, "nnU-Net")
    means = {name: values.mean() for name, values in loading.items()}
    for name, mean in means.items():
        print(f"  {name}: mean {mean * 1e3:.1f} ms, ratio of means {mean / means['nnU-Net']:.3f}")
    torch.set_num_threads(threads)

    for network in networks.values():
        network.train()
    steps = interleaved({name: lambda name=name: train_step(name) for name in networks}, arguments.repeats, device)
    show("Training step", steps, "nnU-Net")

    with torch.no_grad(), autocast():
        logits = aware(image)
    error = aware.latest_error_image
    parts = {
        "training step, nnU-Net": lambda: train_step("nnU-Net"),
        "  detector": part(lambda: aware.detector(image)),
        "  focal weight at every scale": part(lambda: [average_to(focal_weight(error, 99.0), s) for s in sizes]),
        "  loss, nnU-Net": part(lambda: losses["nnU-Net"](logits, targets)),
        "  loss, anomaly-aware": part(lambda: losses["anomaly-aware"](logits, targets)),
    }
    show("Where it goes in training", interleaved(parts, arguments.repeats, device), "training step, nnU-Net")

    window = image[:1]
    for network in networks.values():
        network.eval()
        network.decoder.deep_supervision = False
    predictions = {name: lambda name=name: predict(name) for name in networks}
    predictions["  detector alone"] = part(lambda: aware.detector(window))
    halved = ConfigurationManager({**configuration.configuration, "anomaly": {"detector_resolution": "half"}})
    half = AnomalyAwareTrainer.build_network_architecture(None, halved, 1, NUM_CLASSES, False).to(device).eval()
    predictions["anomaly-aware, detector at half"] = part(lambda: half(window))
    predictions["  that detector alone"] = part(lambda: half.detector(window))
    show("Prediction of one window", interleaved(predictions, arguments.repeats, device), "nnU-Net")
    for title, seen in {"one window": window, f"a batch of {arguments.batch}": image}.items():
        show_detector_variants(title, aware.detector, seen, arguments, autocast)
    for name, network in networks.items():
        print(f"{name}: {sum(p.numel() for p in network.parameters()):,} parameters")
    if device.type == "cuda":
        del logits, error
        for name in networks:
            # Each alone on the GPU, from a first step on: what the other one holds is no part of it.
            for other, network in networks.items():
                optimizers[other].state.clear()
                optimizers[other].zero_grad(set_to_none=True)
                network.to(device if other == name else "cpu")
            aware.latest_error_image = None
            networks[name].decoder.deep_supervision = False
            print(f"{name}: peak memory, prediction of a window {_peak_gib(predict, name):.2f} GiB, ", end="")
            networks[name].train()
            networks[name].decoder.deep_supervision = True
            print(f"training step {_peak_gib(train_step, name):.2f} GiB")


def _peak_gib(action: Callable[[str], None], name: str) -> float:
    """Peak of the GPU memory that tensors take in the second of two calls, GiB: the first one chooses algorithms."""
    action(name)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    action(name)
    return torch.cuda.max_memory_allocated() / 2**30


if __name__ == "__main__":
    main()
