"""State dicts with the names and shapes of published networks, and what those networks compute from them.

Written from the published layouts alone: a second opinion on the converters, which the package has no part in.
"""

import itertools

import torch
import torch.nn.functional as F

CLASSES = 7


class Names(dict):
    """A state dict that is filled while its names are written down."""

    def conv(self, name, inputs, outputs, kernel=1, bias=False, groups=1):
        fan = inputs // groups * kernel**2
        self[f"{name}.weight"] = torch.randn(outputs, inputs // groups, kernel, kernel) * (1.5 / fan) ** 0.5
        if bias:
            self[f"{name}.bias"] = torch.randn(outputs)

    def norm(self, name, channels, signed=False):
        self[f"{name}.weight"] = torch.rand(channels) + 0.5
        if signed:
            self[f"{name}.weight"] *= torch.randint(0, 2, (channels,)) * 2 - 1
        self[f"{name}.bias"] = 0.1 * torch.randn(channels)
        self[f"{name}.running_mean"] = 0.1 * torch.randn(channels)
        self[f"{name}.running_var"] = torch.rand(channels) + 0.5
        self[f"{name}.num_batches_tracked"] = torch.tensor(1)

    def stages(self, prefix, inputs, signed=False):
        """layer1 … layer4 of ResNet-18."""
        for stage, outputs in enumerate((64, 128, 256, 512), 1):
            for i in range(2):
                name = f"{prefix}layer{stage}.{i}"
                self.conv(f"{name}.conv1", inputs, outputs, 3)
                self.norm(f"{name}.bn1", outputs, signed)
                self.conv(f"{name}.conv2", outputs, outputs, 3)
                self.norm(f"{name}.bn2", outputs, signed)
                if i == 0 and (stage > 1 or inputs != outputs):
                    self.conv(f"{name}.downsample.0", inputs, outputs)
                    self.norm(f"{name}.downsample.1", outputs, signed)
                inputs = outputs

    def module(self, name, inputs, outputs, kernel=1, groups=1):
        """OpenMMLab's ConvModule."""
        self.conv(f"{name}.conv", inputs, outputs, kernel, groups=groups)
        self.norm(f"{name}.bn", outputs)

    def separable(self, name, inputs, outputs):
        self.module(f"{name}.depthwise_conv", inputs, inputs, 3, groups=inputs)
        self.module(f"{name}.pointwise_conv", inputs, outputs)

    def stem_v1c(self):
        for i, (a, b) in zip((0, 3, 6), ((3, 32), (32, 32), (32, 64)), strict=True):
            self.conv(f"backbone.stem.{i}", a, b, 3)
            self.norm(f"backbone.stem.{i + 1}", b)

    def stem_deep(self, prefix, signed=False):
        for i, (a, b) in enumerate(((3, 64), (64, 64), (64, 128)), 1):
            self.conv(f"{prefix}conv{i}", a, b, 3)
            self.norm(f"{prefix}bn{i}", b, signed)

    # What follows computes.
    def bn(self, name, x, inplace_abn=False):
        weight = self[f"{name}.weight"]
        weight = weight.abs() + 1e-5 if inplace_abn else weight
        return F.batch_norm(x, self[f"{name}.running_mean"], self[f"{name}.running_var"], weight, self[f"{name}.bias"])

    def apply(self, name, x, stride=1, dilation=1):
        weight = self[f"{name}.weight"]
        groups = x.shape[1] // weight.shape[1]
        padding = dilation * (weight.shape[-1] // 2)
        return F.conv2d(x, weight, self.get(f"{name}.bias"), stride, padding, dilation, groups)

    def run_module(self, name, x, dilation=1):
        return F.relu(self.bn(f"{name}.bn", self.apply(f"{name}.conv", x, dilation=dilation)))

    def run_separable(self, name, x, dilation=1):
        return self.run_module(f"{name}.pointwise_conv", self.run_module(f"{name}.depthwise_conv", x, dilation))

    def run_stages(self, prefix, x, first=((1, 1), (1, 1), (1, 2), (2, 4)), abn=False):
        """`first`: dilations of the two convolutions of each stage's first block; the second one's hold from there."""
        maps = []
        for stage, dilations in enumerate(first, 1):
            for i in range(2):
                name, stride = f"{prefix}layer{stage}.{i}", 2 if stage == 2 and i == 0 else 1
                one, two = dilations if i == 0 else (dilations[1], dilations[1])
                y = F.relu(self.bn(f"{name}.bn1", self.apply(f"{name}.conv1", x, stride, one), abn))
                y = self.bn(f"{name}.bn2", self.apply(f"{name}.conv2", y, 1, two), abn)
                if f"{name}.downsample.0.weight" in self:
                    x = self.bn(f"{name}.downsample.1", self.apply(f"{name}.downsample.0", x, stride), abn)
                x = F.relu(x + y)
            maps.append(x)
        return maps

    def run_v1c(self, x):
        for i, stride in ((0, 2), (3, 1), (6, 1)):
            x = F.relu(self.bn(f"backbone.stem.{i + 1}", self.apply(f"backbone.stem.{i}", x, stride)))
        return self.run_stages("backbone.", F.max_pool2d(x, 3, 2, 1))

    def run_deep(self, prefix, x, ceil_mode=False, abn=False, **options):
        for i, stride in ((1, 2), (2, 1), (3, 1)):
            x = F.relu(self.bn(f"{prefix}bn{i}", self.apply(f"{prefix}conv{i}", x, stride), abn))
        return self.run_stages(prefix, F.max_pool2d(x, 3, 2, 1, ceil_mode=ceil_mode), abn=abn, **options)


def imagenet(x):
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    return (255 * x - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def caffe(x):
    return 255 * x[:, [2, 1, 0]] - torch.tensor([104.00698793, 116.66876762, 122.67891434]).view(3, 1, 1)


def bilinear(x, like, aligned=False):
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=aligned)


def openmmlab_pspnet():
    s = Names()
    s.stem_v1c()
    s.stages("backbone.", 64)
    for i in range(4):
        s.module(f"decode_head.psp_modules.{i}.1", 512, 128)
    s.module("decode_head.bottleneck", 1024, 128, 3)
    s.conv("decode_head.conv_seg", 128, CLASSES, bias=True)
    openmmlab_aux(s)

    def run(x):
        deep = s.run_v1c(imagenet(x))[-1]
        maps = [deep]
        for i, bins in enumerate((1, 2, 3, 6)):
            pooled = s.run_module(f"decode_head.psp_modules.{i}.1", F.adaptive_avg_pool2d(deep, bins))
            maps.append(bilinear(pooled, deep))
        return s.apply("decode_head.conv_seg", s.run_module("decode_head.bottleneck", torch.cat(maps, 1)))

    return s, run


def openmmlab_aux(s):
    s.module("auxiliary_head.convs.0", 256, 64, 3)
    s.conv("auxiliary_head.conv_seg", 64, CLASSES, bias=True)


def openmmlab_deeplab(plus):
    s, width = Names(), 32
    s.stem_v1c()
    s.stages("backbone.", 64)
    s.module("decode_head.image_pool.1", 512, width)
    for i in range(4):
        if plus and i:
            s.separable(f"decode_head.aspp_modules.{i}", 512, width)
        else:
            s.module(f"decode_head.aspp_modules.{i}", 512, width, 3 if i else 1)
    s.module("decode_head.bottleneck", 5 * width, width, 3)
    if plus:
        s.module("decode_head.c1_bottleneck", 64, 48)
        s.separable("decode_head.sep_bottleneck.0", width + 48, width)
        s.separable("decode_head.sep_bottleneck.1", width, width)
    s.conv("decode_head.conv_seg", width, CLASSES, bias=True)
    openmmlab_aux(s)

    def run(x):
        maps = s.run_v1c(imagenet(x))
        deep = maps[-1]
        branches = [bilinear(s.run_module("decode_head.image_pool.1", deep.mean((2, 3), keepdim=True)), deep)]
        for i, rate in enumerate((1, 12, 24, 36)):
            branch = s.run_separable if plus and i else s.run_module
            branches.append(branch(f"decode_head.aspp_modules.{i}", deep, rate))
        out = s.run_module("decode_head.bottleneck", torch.cat(branches, 1))
        if plus:
            low = s.run_module("decode_head.c1_bottleneck", maps[0])
            out = torch.cat([bilinear(out, low), low], 1)
            for i in range(2):
                out = s.run_separable(f"decode_head.sep_bottleneck.{i}", out)
        return s.apply("decode_head.conv_seg", out)

    return s, run


def openmmlab_fcn():
    s = Names()
    s.stem_v1c()
    s.stages("backbone.", 64)
    s.module("decode_head.convs.0", 512, 128, 3)
    s.module("decode_head.convs.1", 128, 128, 3)
    s.module("decode_head.conv_cat", 640, 128, 3)
    s.conv("decode_head.conv_seg", 128, CLASSES, bias=True)
    openmmlab_aux(s)

    def run(x):
        deep = s.run_v1c(imagenet(x))[-1]
        out = s.run_module("decode_head.convs.1", s.run_module("decode_head.convs.0", deep))
        return s.apply("decode_head.conv_seg", s.run_module("decode_head.conv_cat", torch.cat([deep, out], 1)))

    return s, run


def skd_pspnet():
    s = Names()
    s.stem_deep("", signed=True)
    s.stages("", 128, signed=True)
    for i in range(4):
        s.conv(f"pspmodule.stages.{i}.1", 512, 128)
        s.norm(f"pspmodule.stages.{i}.2", 128, signed=True)
    s.conv("pspmodule.bottleneck.0", 1024, 128, 3)
    s.norm("pspmodule.bottleneck.1", 128, signed=True)
    s.conv("head", 128, CLASSES, bias=True)
    s.conv("dsn.0", 256, 128, 3, bias=True)
    s.norm("dsn.1", 128, signed=True)
    s.conv("dsn.3", 128, CLASSES, bias=True)

    def run(x):
        deep = s.run_deep("", caffe(x), ceil_mode=True, abn=True, first=((1, 1), (1, 1), (2, 2), (4, 4)))[-1]
        maps = []
        for i, bins in enumerate((1, 2, 3, 6)):
            pooled = s.apply(f"pspmodule.stages.{i}.1", F.adaptive_avg_pool2d(deep, bins))
            pooled = F.leaky_relu(s.bn(f"pspmodule.stages.{i}.2", pooled, True), 0.01)
            maps.append(bilinear(pooled, deep, aligned=True))
        out = s.apply("pspmodule.bottleneck.0", torch.cat([*maps, deep], 1))
        return s.apply("head", F.leaky_relu(s.bn("pspmodule.bottleneck.1", out, True), 0.01))

    return s, run


def cirkd_aux(s):
    s.conv("auxlayer.block.0", 256, 64, 3)
    s.norm("auxlayer.block.1", 64)
    s.conv("auxlayer.block.4", 64, CLASSES, bias=True)


def cirkd_deeplab():
    s, width = Names(), 128
    s.stem_deep("pretrained.")
    s.stages("pretrained.", 128)
    s.conv("head.aspp.b0.0", 512, width)
    s.norm("head.aspp.b0.1", width)
    for i in (1, 2, 3):
        s.conv(f"head.aspp.b{i}.block.0", 512, width, 3)
        s.norm(f"head.aspp.b{i}.block.1", width)
    s.conv("head.aspp.b4.gap.1", 512, width)
    s.norm("head.aspp.b4.gap.2", width)
    s.conv("head.aspp.project.0", 5 * width, width)
    s.norm("head.aspp.project.1", width)
    s.conv("head.block.0", width, width, 3)
    s.norm("head.block.1", width)
    s.conv("head.block.4", width, CLASSES, bias=True)
    cirkd_aux(s)

    def cbr(conv, norm, x, dilation=1):
        return F.relu(s.bn(norm, s.apply(conv, x, dilation=dilation)))

    def run(x):
        deep = s.run_deep("pretrained.", caffe(x))[-1]
        maps = [cbr("head.aspp.b0.0", "head.aspp.b0.1", deep)]
        for i in (1, 2, 3):
            maps.append(cbr(f"head.aspp.b{i}.block.0", f"head.aspp.b{i}.block.1", deep, 12 * i))
        pooled = cbr("head.aspp.b4.gap.1", "head.aspp.b4.gap.2", deep.mean((2, 3), keepdim=True))
        out = torch.cat([*maps, bilinear(pooled, deep, aligned=True)], 1)
        out = cbr("head.block.0", "head.block.1", cbr("head.aspp.project.0", "head.aspp.project.1", out))
        return s.apply("head.block.4", out)

    return s, run


def cirkd_pspnet():
    s = Names()
    s.stem_deep("pretrained.")
    s.stages("pretrained.", 128)
    for i in range(1, 5):
        s.conv(f"head.psp.conv{i}.0", 512, 128)
        s.norm(f"head.psp.conv{i}.1", 128)
    s.conv("head.block.0", 1024, 128, 3)
    s.norm("head.block.1", 128)
    s.conv("head.classifier", 128, CLASSES, bias=True)
    cirkd_aux(s)

    def run(x):
        deep = s.run_deep("pretrained.", caffe(x))[-1]
        maps = [deep]
        for i, bins in enumerate((1, 2, 3, 6), 1):
            pooled = s.apply(f"head.psp.conv{i}.0", F.adaptive_avg_pool2d(deep, bins))
            maps.append(bilinear(F.relu(s.bn(f"head.psp.conv{i}.1", pooled)), deep, aligned=True))
        out = F.relu(s.bn("head.block.1", s.apply("head.block.0", torch.cat(maps, 1))))
        return s.apply("head.classifier", out)

    return s, run


def mobilenetv2_plus_names():
    """OpenMMLab's DeepLabV3+ on MobileNetV2."""
    s = Names()
    s.module("backbone.conv1", 3, 32, 3)
    s.module("backbone.layer1.0.conv.0", 32, 32, 3, groups=32)
    s.module("backbone.layer1.0.conv.1", 32, 16)
    inputs = 16
    for stage, (outputs, blocks) in enumerate(((24, 2), (32, 3), (64, 4), (96, 3), (160, 3), (320, 1)), 2):
        for i in range(blocks):
            name = f"backbone.layer{stage}.{i}.conv"
            s.module(f"{name}.0", inputs, 6 * inputs)
            s.module(f"{name}.1", 6 * inputs, 6 * inputs, 3, groups=6 * inputs)
            s.module(f"{name}.2", 6 * inputs, outputs)
            inputs = outputs
    s.module("decode_head.image_pool.1", 320, 512)
    s.module("decode_head.aspp_modules.0", 320, 512)
    for i in (1, 2, 3):
        s.separable(f"decode_head.aspp_modules.{i}", 320, 512)
    s.module("decode_head.bottleneck", 2560, 512, 3)
    s.module("decode_head.c1_bottleneck", 24, 48)
    s.separable("decode_head.sep_bottleneck.0", 560, 512)
    s.separable("decode_head.sep_bottleneck.1", 512, 512)
    s.conv("decode_head.conv_seg", 512, CLASSES, bias=True)
    return s


def isanet_names():
    s = Names()
    s.stem_v1c()
    s.stages("backbone.", 64)
    s.module("decode_head.in_conv", 512, 128, 3)
    for relation in ("global_relation", "local_relation"):
        for part, i in itertools.product(("key_project", "query_project"), (0, 1)):
            s.module(f"decode_head.{relation}.{part}.{i}", 256 if i else 128, 256)
        s.conv(f"decode_head.{relation}.value_project", 128, 128, bias=True)
        s.module(f"decode_head.{relation}.output_project", 128, 128)
    s.module("decode_head.out_conv", 256, 128)
    s.conv("decode_head.conv_seg", 128, CLASSES, bias=True)
    return s


def hrnet_names():
    """OpenMMLab's HRNetV2-W18-Small with an FCN head."""
    s, widths = Names(), (18, 36, 72, 144)
    for i, inputs in ((1, 3), (2, 64)):
        s.conv(f"backbone.conv{i}", inputs, 64, 3)
        s.norm(f"backbone.bn{i}", 64)
    for i in range(2):
        name = f"backbone.layer1.{i}"
        for j, (a, b, k) in enumerate(((256 if i else 64, 64, 1), (64, 64, 3), (64, 256, 1)), 1):
            s.conv(f"{name}.conv{j}", a, b, k)
            s.norm(f"{name}.bn{j}", b)
        if i == 0:
            s.conv(f"{name}.downsample.0", 64, 256)
            s.norm(f"{name}.downsample.1", 256)

    def pair(name, a, b, k):
        s.conv(f"{name}.0", a, b, k)
        s.norm(f"{name}.1", b)

    pair("backbone.transition1.0", 256, 18, 3)
    pair("backbone.transition1.1.0", 256, 36, 3)
    pair("backbone.transition2.2.0", 36, 72, 3)
    pair("backbone.transition3.3.0", 72, 144, 3)
    for stage, modules in ((2, 1), (3, 3), (4, 2)):
        for m, branch in itertools.product(range(modules), range(stage)):
            name, width = f"backbone.stage{stage}.{m}", widths[branch]
            for block, j in itertools.product(range(2), (1, 2)):
                s.conv(f"{name}.branches.{branch}.{block}.conv{j}", width, width, 3)
                s.norm(f"{name}.branches.{branch}.{block}.bn{j}", width)
            for other in range(stage):
                path = f"{name}.fuse_layers.{branch}.{other}"
                if other > branch:
                    pair(path, widths[other], width, 1)
                for step in range(branch - other):
                    last = step == branch - other - 1
                    pair(f"{path}.{step}", widths[other], width if last else widths[other], 3)
    s.module("decode_head.convs.0", sum(widths), sum(widths))
    s.conv("decode_head.conv_seg", sum(widths), CLASSES, bias=True)
    return s
