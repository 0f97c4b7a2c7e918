from torch import nn


class PerceptualLoss(nn.Module):
    name = "lpips"
