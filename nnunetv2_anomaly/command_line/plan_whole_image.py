"""``nnUNetv2_anomaly plan_whole_image``: plans whose patch is the whole image."""

from __future__ import annotations

import argparse

HELP = "Plans with the whole image as patch and batch 1, next to nnU-Net's own, and the memory that training needs."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options, which mean what they mean in nnU-Net."""
    parser.add_argument("-d", required=True, metavar="ID", help="number or name of the data set, planned by nnU-Net")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans to start from (default: nnUNetPlans)")
    what = "3d_fullres, or whole slices with 2d (default: 3d_fullres if the plans have it)"
    parser.add_argument("-c", choices=("3d_fullres", "2d"), metavar="CONFIGURATION", help=what)
    size = "resample slices to N voxels along their longer axis, as 128, 192, 256, 320 or 448; with -c 2d"
    parser.add_argument("--size", type=int, metavar="N", help=size)
    name = "nnUNetWholeImagePlans, or nnUNetWholeSlicePlans with the size"
    parser.add_argument("--plans_name", metavar="NAME", help=f"the new plans (default: {name})")
    parser.add_argument("--overwrite", action="store_true", help="replace other whole-image plans of that name")


def run(arguments: argparse.Namespace) -> int:
    """Write the plans, then print the next commands and the memory that training needs; returns 0."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunetv2_anomaly.errors import UserError
    from nnunetv2_anomaly.inspection.training_memory import estimate_all
    from nnunetv2_anomaly.plans.memory import describe
    from nnunetv2_anomaly.plans.whole_image import plan_whole_image

    if arguments.size is not None and not 32 <= arguments.size <= 4096:
        raise UserError(f"--size is {arguments.size}; expected voxels from 32 to 4096")
    options = {name: getattr(arguments, name) for name in ("plans_name", "size", "overwrite")}
    planned = plan_whole_image(arguments.d, source_plans=arguments.p, configuration=arguments.c, **options)
    plans_manager = PlansManager(planned.plans)
    configuration_manager = plans_manager.get_configuration(planned.configuration)
    print(f"{'Wrote' if planned.written else 'Already there, unchanged:'} {planned.file}")
    patch = f"patch {_times(configuration_manager.patch_size)} voxels, batch {configuration_manager.batch_size}"
    strides = ", ".join(map(_times, configuration_manager.pool_op_kernel_sizes))
    origin = f"from the largest training image, {_times(planned.largest_image)}; strides {strides}"
    print(f"{planned.configuration}: {patch}, {origin}")
    number = planned.plans["dataset_name"][len("Dataset") :].split("_")[0]
    name = planned.plans["plans_name"]
    print(f"Next: nnUNetv2_preprocess -d {number} -plans_name {name} -c {planned.configuration}")
    print(f"Then give nnUNetv2_train and nnUNetv2_predict -p {name}\n")
    channels = planned.dataset_json.get("channel_names", planned.dataset_json.get("modality", {}))
    classes = plans_manager.get_label_manager(planned.dataset_json).num_segmentation_heads
    print(f"Peak memory of a training step, batch 1, {len(channels)} channel(s), {classes} classes; an estimate:")
    try:
        print(describe(estimate_all(configuration_manager, len(channels), classes)))
    except UserError as error:
        # The plans are written and serve nnU-Net's own trainers; only ours cannot be built for them.
        print(f"none: {error}")
    return 0


def _times(sizes) -> str:
    return " x ".join(str(size) for size in sizes)
