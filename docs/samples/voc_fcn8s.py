"""voc-fcn8s: a Caffe net in plain PyTorch, written by fcnproto.

`load()` gives the module with the weights in voc_fcn8s.safetensors, which lies beside this file.
The comments say each blob's shape for the inputs' size in the prototxt; other sizes work too where no fully connected
layer follows.

Input data: BGR, mean 104.007 116.669 122.679, scale 1 (known of voc-fcn8s).
"""

from pathlib import Path

import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn


class VocFcn8s(nn.Module):
    """voc-fcn8s: takes data, gives score."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1_1 = nn.Conv2d(3, 64, 3, padding=100)
        self.conv1_2 = nn.Conv2d(64, 64, 3, padding=1)
        self.conv2_1 = nn.Conv2d(64, 128, 3, padding=1)
        self.conv2_2 = nn.Conv2d(128, 128, 3, padding=1)
        self.conv3_1 = nn.Conv2d(128, 256, 3, padding=1)
        self.conv3_2 = nn.Conv2d(256, 256, 3, padding=1)
        self.conv3_3 = nn.Conv2d(256, 256, 3, padding=1)
        self.conv4_1 = nn.Conv2d(256, 512, 3, padding=1)
        self.conv4_2 = nn.Conv2d(512, 512, 3, padding=1)
        self.conv4_3 = nn.Conv2d(512, 512, 3, padding=1)
        self.conv5_1 = nn.Conv2d(512, 512, 3, padding=1)
        self.conv5_2 = nn.Conv2d(512, 512, 3, padding=1)
        self.conv5_3 = nn.Conv2d(512, 512, 3, padding=1)
        self.fc6 = nn.Conv2d(512, 4096, 7)
        self.fc7 = nn.Conv2d(4096, 4096, 1)
        self.score_fr = nn.Conv2d(4096, 21, 1)
        self.upscore2 = nn.ConvTranspose2d(21, 21, 4, stride=2, bias=False)
        self.score_pool4 = nn.Conv2d(512, 21, 1)
        self.upscore_pool4 = nn.ConvTranspose2d(21, 21, 4, stride=2, bias=False)
        self.score_pool3 = nn.Conv2d(256, 21, 1)
        self.upscore8 = nn.ConvTranspose2d(21, 21, 16, stride=8, bias=False)

    def forward(self, data: Tensor) -> Tensor:
        conv1_1 = self.conv1_1(data)  # 1 x 64 x 698 x 698
        conv1_1 = F.relu(conv1_1)  # 1 x 64 x 698 x 698
        conv1_2 = self.conv1_2(conv1_1)  # 1 x 64 x 698 x 698
        conv1_2 = F.relu(conv1_2)  # 1 x 64 x 698 x 698
        pool1 = F.max_pool2d(conv1_2, 2, stride=2, ceil_mode=True)  # 1 x 64 x 349 x 349
        conv2_1 = self.conv2_1(pool1)  # 1 x 128 x 349 x 349
        conv2_1 = F.relu(conv2_1)  # 1 x 128 x 349 x 349
        conv2_2 = self.conv2_2(conv2_1)  # 1 x 128 x 349 x 349
        conv2_2 = F.relu(conv2_2)  # 1 x 128 x 349 x 349
        pool2 = F.max_pool2d(conv2_2, 2, stride=2, ceil_mode=True)  # 1 x 128 x 175 x 175
        conv3_1 = self.conv3_1(pool2)  # 1 x 256 x 175 x 175
        conv3_1 = F.relu(conv3_1)  # 1 x 256 x 175 x 175
        conv3_2 = self.conv3_2(conv3_1)  # 1 x 256 x 175 x 175
        conv3_2 = F.relu(conv3_2)  # 1 x 256 x 175 x 175
        conv3_3 = self.conv3_3(conv3_2)  # 1 x 256 x 175 x 175
        conv3_3 = F.relu(conv3_3)  # 1 x 256 x 175 x 175
        pool3 = F.max_pool2d(conv3_3, 2, stride=2, ceil_mode=True)  # 1 x 256 x 88 x 88
        conv4_1 = self.conv4_1(pool3)  # 1 x 512 x 88 x 88
        conv4_1 = F.relu(conv4_1)  # 1 x 512 x 88 x 88
        conv4_2 = self.conv4_2(conv4_1)  # 1 x 512 x 88 x 88
        conv4_2 = F.relu(conv4_2)  # 1 x 512 x 88 x 88
        conv4_3 = self.conv4_3(conv4_2)  # 1 x 512 x 88 x 88
        conv4_3 = F.relu(conv4_3)  # 1 x 512 x 88 x 88
        pool4 = F.max_pool2d(conv4_3, 2, stride=2, ceil_mode=True)  # 1 x 512 x 44 x 44
        conv5_1 = self.conv5_1(pool4)  # 1 x 512 x 44 x 44
        conv5_1 = F.relu(conv5_1)  # 1 x 512 x 44 x 44
        conv5_2 = self.conv5_2(conv5_1)  # 1 x 512 x 44 x 44
        conv5_2 = F.relu(conv5_2)  # 1 x 512 x 44 x 44
        conv5_3 = self.conv5_3(conv5_2)  # 1 x 512 x 44 x 44
        conv5_3 = F.relu(conv5_3)  # 1 x 512 x 44 x 44
        pool5 = F.max_pool2d(conv5_3, 2, stride=2, ceil_mode=True)  # 1 x 512 x 22 x 22
        fc6 = self.fc6(pool5)  # 1 x 4096 x 16 x 16
        fc6 = F.relu(fc6)  # 1 x 4096 x 16 x 16
        fc7 = self.fc7(fc6)  # 1 x 4096 x 16 x 16
        fc7 = F.relu(fc7)  # 1 x 4096 x 16 x 16
        score_fr = self.score_fr(fc7)  # 1 x 21 x 16 x 16
        upscore2 = self.upscore2(score_fr)  # 1 x 21 x 34 x 34
        score_pool4 = self.score_pool4(pool4)  # 1 x 21 x 44 x 44
        score_pool4c = score_pool4[:, :, 5 : 5 + upscore2.shape[2], 5 : 5 + upscore2.shape[3]]  # 1 x 21 x 34 x 34
        fuse_pool4 = upscore2 + score_pool4c  # 1 x 21 x 34 x 34
        upscore_pool4 = self.upscore_pool4(fuse_pool4)  # 1 x 21 x 70 x 70
        score_pool3 = self.score_pool3(pool3)  # 1 x 21 x 88 x 88
        # 1 x 21 x 70 x 70
        score_pool3c = score_pool3[:, :, 9 : 9 + upscore_pool4.shape[2], 9 : 9 + upscore_pool4.shape[3]]
        fuse_pool3 = upscore_pool4 + score_pool3c  # 1 x 21 x 70 x 70
        upscore8 = self.upscore8(fuse_pool3)  # 1 x 21 x 568 x 568
        score = upscore8[:, :, 31 : 31 + data.shape[2], 31 : 31 + data.shape[3]]  # 1 x 21 x 500 x 500
        return score


def load(path: str | Path | None = None) -> VocFcn8s:
    """The net with its weights, ready for inference; `path` is the file of weights."""
    net = VocFcn8s()
    net.load_state_dict(load_file(Path(__file__).with_name("voc_fcn8s.safetensors") if path is None else path))
    return net.eval()
