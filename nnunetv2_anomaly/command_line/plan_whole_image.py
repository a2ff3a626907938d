"""``nnUNetv2_anomaly plan_whole_image``: plans whose patch is the whole image."""

from __future__ import annotations

import argparse

HELP = "Plans with the whole image as patch and batch 1, next to nnU-Net's own, and the memory that training needs."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options, which mean what they mean in nnU-Net."""
    parser.add_argument("-d", required=True, metavar="ID", help="number or name of the data set, planned by nnU-Net")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans to start from (default: nnUNetPlans)")
    name = "nnUNetWholeImagePlans"
    parser.add_argument("--plans_name", default=name, metavar="NAME", help="the new plans (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace other whole-image plans of that name")


def run(arguments: argparse.Namespace) -> int:
    """Write the plans, then print the next commands and the memory that training needs; returns 0."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunetv2_anomaly.errors import UserError
    from nnunetv2_anomaly.inspection.training_memory import estimate_all
    from nnunetv2_anomaly.plans.memory import describe
    from nnunetv2_anomaly.plans.whole_image import plan_whole_image

    planned = plan_whole_image(
        arguments.d, source_plans=arguments.p, plans_name=arguments.plans_name, overwrite=arguments.overwrite
    )
    plans_manager = PlansManager(planned.plans)
    configuration_manager = plans_manager.get_configuration(planned.configuration)
    print(f"{'Wrote' if planned.written else 'Already there, unchanged:'} {planned.file}")
    patch = f"patch {_times(configuration_manager.patch_size)} voxels"
    strides = ", ".join(map(_times, configuration_manager.pool_op_kernel_sizes))
    origin = f"from the largest training image, {_times(planned.largest_image)}; strides {strides}"
    print(f"{planned.configuration}: {patch}, {origin}")
    number = planned.plans["dataset_name"][len("Dataset") :].split("_")[0]
    print(f"Next: nnUNetv2_preprocess -d {number} -plans_name {arguments.plans_name} -c {planned.configuration}")
    print(f"Then give nnUNetv2_train and nnUNetv2_predict -p {arguments.plans_name}\n")
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
