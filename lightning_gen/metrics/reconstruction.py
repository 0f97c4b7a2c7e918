import torch


def psnr(x, y):
    return 10 * torch.log10(4 / (x - y).square().flatten(1).mean(1))


def ssim(x, y):
    return psnr(x, y)
