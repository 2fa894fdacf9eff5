"""Makes fcnproto/schema/caffe_pb2.py of protos/caffe.proto and what protos/forks.proto adds to it.

    python protos/make.py [FOLDER]

The messages of both files become those of one package: a message of forks.proto with a name that caffe.proto has is an
addition to that one, so that `layer.prior_box_param` is read and written like `layer.convolution_param`. Needs
grpcio-tools. FOLDER: where to put it, instead of this checkout.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).resolve().parents[1]
CAFFE, FORKS = "fcnproto/schema/caffe.proto", "fcnproto/schema/forks.proto"
FORKS_PACKAGE = ".fcnproto.forks."


def protoc(*arguments: str) -> None:
    """Runs grpcio-tools' protoc in the checkout."""
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], cwd=ROOT, check=True)


def descriptions(folder: Path) -> tuple[FileDescriptorProto, FileDescriptorProto]:
    """Both files as protoc understands them."""
    target = folder / "both.binpb"
    places = [f"-I{CAFFE}=protos/caffe.proto", f"-I{FORKS}=protos/forks.proto"]
    protoc(*places, f"--descriptor_set_out={target}", CAFFE, FORKS)
    files = {file.name: file for file in FileDescriptorSet.FromString(target.read_bytes()).file}
    return files[CAFFE], files[FORKS]


def merge(caffe: FileDescriptorProto, forks: FileDescriptorProto) -> FileDescriptorProto:
    """One file with all messages; additions go to the end of the message of their name."""
    own = {message.name: message for message in caffe.message_type}
    for message in forks.message_type:
        _retarget(message, own)
        if message.name in own:
            _add(own[message.name], message)
        else:
            caffe.message_type.append(message)
    return caffe


def _retarget(message: DescriptorProto, own: dict[str, DescriptorProto]) -> None:
    """Types named in the forks' package are those of the one package."""
    for field in message.field:
        if field.type_name.startswith(FORKS_PACKAGE):
            field.type_name = ".fcnproto." + field.type_name.removeprefix(FORKS_PACKAGE)
    for nested in message.nested_type:
        _retarget(nested, own)


def _add(target: DescriptorProto, addition: DescriptorProto) -> None:
    enums = {enum.name: enum for enum in target.enum_type}
    for enum in addition.enum_type:
        if enum.name in enums:
            _add_values(enums[enum.name], enum)
        else:
            target.enum_type.append(enum)
    target.field.extend(addition.field)
    target.nested_type.extend(addition.nested_type)


def _add_values(target: EnumDescriptorProto, addition: EnumDescriptorProto) -> None:
    target.value.extend(addition.value)


def main(target: Path) -> None:
    """Writes fcnproto/schema/caffe_pb2.py below `target`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        merged = merge(*descriptions(folder))
        (folder / "merged.binpb").write_bytes(FileDescriptorSet(file=[merged]).SerializeToString())
        protoc(f"--descriptor_set_in={folder / 'merged.binpb'}", f"--python_out={target}", CAFFE)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT)
