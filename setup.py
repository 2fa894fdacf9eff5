"""The list of packages; everything else about the distribution is in pyproject.toml.

The published nets live in models/ and are installed as the package `fcnproto._models`, where `fcnproto.zoo` finds them;
the manual's pages in docs/ as `fcnproto._docs`, where messages say that they are (`fcnproto.errors.page`).
"""

from __future__ import annotations

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py


class Build(build_py):
    """The scripts in docs/ that make pages aren't part of what is installed."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """The modules of one package."""
        return [] if package == "fcnproto._docs" else super().find_package_modules(package, package_dir)


setup(
    packages=[*find_namespace_packages(include=["fcnproto", "fcnproto.*"]), "fcnproto._models", "fcnproto._docs"],
    package_dir={"fcnproto._models": "models", "fcnproto._docs": "docs"},
    cmdclass={"build_py": Build},
)
