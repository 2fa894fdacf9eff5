"""The list of packages; everything else about the distribution is in pyproject.toml.

The published nets live in models/ and are installed as the package `fcnproto._models`, where `fcnproto.zoo` finds them.
"""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["fcnproto", "fcnproto.*"]), "fcnproto._models"],
    package_dir={"fcnproto._models": "models"},
)
