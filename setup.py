"""Everything is in setup.cfg; this file only leaves nnU-Net's own folder out of an editable install."""

from setuptools import setup
from setuptools.command.editable_wheel import editable_wheel


class EditableWheel(editable_wheel):
    """An editable install without the packages that lie inside nnunetv2.

    setuptools would register "nnunetv2" as a namespace package for their sake, and that hides nnU-Net itself when it
    is an editable install too. Editable installs reach nnU-Net through nnUNet_extTrainer, so nothing is lost.
    """

    def run(self) -> None:
        """Build the editable wheel from our own packages alone."""
        ours = [name for name in self.distribution.packages if not name.startswith("nnunetv2.")]
        self.distribution.packages = ours
        self.distribution.package_dir = {
            name: folder for name, folder in self.distribution.package_dir.items() if not name.startswith("nnunetv2.")
        }
        super().run()


setup(cmdclass={"editable_wheel": EditableWheel})
