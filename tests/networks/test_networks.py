"""The zoo against the published table of sizes, what every network promises, and foreign ones."""

import copy
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdbench.assembly.make import make
from kdbench.config.hydra_cli import compose_group
from kdbench.data.augmentation.views import normalise
from kdbench.errors import ConfigError
from kdbench.networks import tapped
from kdbench.networks.heads import with_class_maps
from kdbench.networks.own_input import adapt_input
from kdbench.networks.tapped import timm_model, torchvision_model
from support.commands import ROOT
from support.zoo import constructor, mac_count, network_names, parameter_count, read_yaml


class Size(NamedTuple):
    """At 100 classes and 32 px."""

    parameters: int
    mega_macs: float  # two decimals
    tensors: int  # in the state dict
    taps: str  # stem, stages, pooled: channels x side


# Section 5 of the catalogue of recipes: counted in the networks that RepDistiller and mdistiller
# released.
RESNET = "16x32 16x32 32x16 64x8 64"
RESNET_X4 = "32x32 64x32 128x16 256x8 256"
WRN_1, WRN_2, WRN_4 = (f"16x32 {16 * k}x32 {32 * k}x16 {64 * k}x8 {64 * k}" for k in (1, 2, 4))
VGG = "64x32 128x16 256x8 512x4 512x4 512"
SIZES = {
    "resnet8": Size(83_892, 12.51, 56, RESNET),
    "resnet14": Size(181_108, 26.66, 92, RESNET),
    "resnet20": Size(278_324, 40.82, 128, RESNET),
    "resnet32": Size(472_756, 69.13, 200, RESNET),
    "resnet44": Size(667_188, 97.44, 272, RESNET),
    "resnet56": Size(861_620, 125.75, 344, RESNET),
    "resnet110": Size(1_736_564, 253.16, 668, RESNET),
    "resnet8x4": Size(1_233_540, 177.07, 62, RESNET_X4),
    "resnet32x4": Size(7_433_860, 1083.04, 206, RESNET_X4),
    "wrn_16_1": Size(180_916, 26.66, 82, WRN_1),
    "wrn_16_2": Size(703_284, 101.12, 83, WRN_2),
    "wrn_16_4": Size(2_772_020, 392.64, 83, WRN_4),
    "wrn_28_2": Size(1_479_220, 214.36, 155, WRN_2),
    "wrn_28_4": Size(5_872_180, 845.62, 155, WRN_4),
    "wrn_28_10": Size(36_536_884, 5243.39, 155, "16x32 160x32 320x16 640x8 640"),
    "wrn_40_1": Size(569_780, 83.29, 226, WRN_1),
    "wrn_40_2": Size(2_255_156, 327.61, 227, WRN_2),
    "wrn_40_4": Size(8_972_340, 1298.61, 227, WRN_4),
    "vgg8": Size(3_965_028, 96.19, 37, VGG),
    "vgg11": Size(9_277_284, 209.44, 58, VGG),
    "vgg13": Size(9_462_180, 284.94, 72, VGG),
    "vgg16": Size(14_774_436, 398.18, 93, VGG),
    "vgg19": Size(20_086_692, 511.43, 114, VGG),
    "MobileNetV2": Size(812_836, 6.52, 320, "16x16 12x16 16x8 48x4 160x2 1280"),
    "ShuffleV1": Size(949_258, 38.69, 296, "24x32 240x16 480x8 960x4 960"),
    "ShuffleV2": Size(1_355_528, 44.50, 338, "24x32 116x16 232x8 464x4 1024"),
    "ResNet18": Size(11_220_132, 555.47, 122, "64x32 64x32 128x16 256x8 512x4 512"),
    "ResNet34": Size(21_328_292, 1159.45, 218, "64x32 64x32 128x16 256x8 512x4 512"),
    "ResNet50": Size(23_705_252, 1298.01, 320, "64x32 256x32 512x16 1024x8 2048x4 2048"),
    # Counted here: Tf-KD's networks, whose sizes are known as 2.4, 1.3, 6.2, 7.0 and 34.4 M.
    "MobileNetV2Tiny": Size(2_369_380, 64.95, 373, "32x34 24x17 32x9 96x5 320x5 1280"),
    "ShuffleNetV2": Size(1_360_896, 43.68, 394, "24x32 116x16 232x8 464x4 1024"),
    "GoogLeNet": Size(6_258_500, 1521.85, 450, "192x32 480x32 832x16 1024x8 1024"),
    "DenseNet121": Size(7_048_548, 888.44, 722, "64x32 256x32 512x16 1024x8 1024x4 1024"),
    "ResNeXt29": Size(34_518_948, 5387.36, 188, "64x32 256x32 512x16 1024x8 1024"),
    "MobileNetV1": Size(3_309_476, 11.69, 164, "32x16 128x8 256x4 512x2 1024x1 1024"),
}
# At the classes and sides that recipes state: Tiny-ImageNet (mdistiller) and ImageNet.
AS_USED = [
    ("MobileNetV2Tiny", 200, 64, 2_497_480, 215.7),
    ("ResNet18", 200, 64, 11_271_432, 2221.8),
    ("MobileNetV1", 1000, 224, 4_231_976, 568.7),
    ("imagenet_ResNet18", 1000, 224, 11_689_512, 1814.1),
    ("imagenet_ResNet34", 1000, 224, 21_797_672, 3663.8),
    ("imagenet_ResNet50", 1000, 224, 25_557_032, 4089.2),
]


def tap_shapes(sizes: str) -> dict[str, list[int]]:
    """Every tap of a network by name, in order, from a line of the table above."""
    *maps, pooled = sizes.split()
    shapes = [
        [int(channels), int(side), int(side)] for channels, side in (m.split("x") for m in maps)
    ]
    taps = {"stem": shapes[0]}
    for number, shape in enumerate(shapes[1:], start=1):
        taps |= {f"stage{number}": shape, f"stage{number}_pre": shape}
    # The map has the last stage's size; MobileNetV2 and ShuffleV2 widen it by one more convolution.
    return taps | {"map": [int(pooled), *shape[1:]], "pooled": [int(pooled)]}


def build_network_of(name: str, num_classes: int) -> nn.Module:
    """The network of conf/student/<name>.yaml."""
    return make(compose_group("student", name), num_classes=num_classes)


def batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", network_names())
def test_size_is_the_published_one(name):
    assert name in SIZES, f"{name} has no line in the table of sizes"
    network = constructor(name)(num_classes=100).eval()
    expected = SIZES[name]
    assert parameter_count(network) == expected.parameters
    assert mac_count(network, torch.zeros(1, 3, 32, 32)) / 1e6 == pytest.approx(
        expected.mega_macs, abs=0.005
    )
    assert len(network.state_dict()) == expected.tensors


@pytest.mark.parametrize(("name", "classes", "side", "parameters", "mega_macs"), AS_USED)
def test_size_at_the_images_it_is_used_for(name, classes, side, parameters, mega_macs):
    network = build_network_of(name, classes).eval()
    assert parameter_count(network) == parameters
    macs = mac_count(network, torch.zeros(1, 3, side, side)) / 1e6
    assert macs == pytest.approx(mega_macs, abs=0.05)


@pytest.mark.parametrize("name", ["imagenet_ResNet18", "imagenet_ResNet34", "imagenet_ResNet50"])
def test_imagenet_resnets_tap_the_sum_before_each_stage_s_last_relu(name):
    taps = build_network_of(name, 10).eval()(torch.randn(2, 3, 64, 64)).taps
    assert [tap for tap in taps if not tap.endswith("_pre")] == [
        *("stem", "stage1", "stage2", "stage3", "stage4", "map", "pooled")
    ]
    for stage in ("stage1", "stage2", "stage3", "stage4"):
        assert torch.equal(taps[stage], taps[f"{stage}_pre"].relu())
        assert (taps[f"{stage}_pre"] < 0).any()


def test_class_maps_of_a_foreign_network():
    network = with_class_maps(build_network_of("imagenet_ResNet18", 10)).eval()
    output = network(torch.randn(2, 3, 64, 64))
    assert tuple(output.taps) == network.TAPS
    logits = output.taps["class_map"].mean(dim=(2, 3))
    torch.testing.assert_close(logits, output.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", network_names())
def test_one_training_pass_gives_the_taps_and_sees_each_norm_once(name):
    network = constructor(name)(num_classes=10)
    output = network(torch.randn(2, 3, 32, 32))
    shapes = {tap: list(value.shape[1:]) for tap, value in output.taps.items()}
    assert list(shapes.items()) == list(tap_shapes(SIZES[name].taps).items())
    assert tuple(output.taps) == network.TAPS
    assert output.logits.shape == (2, 10)
    assert {norm.num_batches_tracked.item() for norm in batch_norms(network)} == {1}


@pytest.mark.parametrize("name", network_names())
def test_files_name_the_network(name):
    assert read_yaml(ROOT / f"conf/student/{name}.yaml")["name"] == name
    teacher = read_yaml(ROOT / f"conf/teacher/{name}.yaml")
    assert teacher.pop("defaults") == [{f"/student@{name}.network": name}, "_self_"]
    checkpoint = f"${{dataset.name}}-none-{name}-ce-s1000"
    further = {"passport": None, "checkpoint_key": None, "allow_chance": False}
    assert teacher == {name: {"checkpoint": checkpoint, **further}}


SMALL = [
    "ShuffleNetV2",
    "MobileNetV2Tiny",
    "resnet8",
    "wrn_16_1",
    "vgg8",
    "MobileNetV2",
    "ShuffleV1",
    "ShuffleV2",
    "ResNet18",
]


@pytest.mark.parametrize("name", SMALL)
def test_other_sizes_and_channels(name):
    network = constructor(name)(num_classes=10, in_channels=1).eval()
    pooled = tap_shapes(SIZES[name].taps)["pooled"]
    for height, width in ((64, 64), (28, 28), (40, 72)):
        with torch.no_grad():
            output = network(torch.randn(2, 1, height, width))
        assert output.logits.shape == (2, 10)
        assert list(output.taps["pooled"].shape[1:]) == pooled


def test_vgg_pools_once_more_from_64_pixels_on():
    network = constructor("vgg8")(num_classes=10).eval()
    for side, last in ((32, 4), (64, 4), (128, 8)):
        assert network(torch.zeros(1, 3, side, side)).taps["stage4"].shape[-1] == last


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_and_input_gets_a_gradient(name):
    network = constructor(name)(num_classes=10)
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    network(images).logits.square().sum().backward()
    assert images.grad.abs().sum() > 0
    assert [key for key, value in network.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "ShuffleV1", "ResNet18", "GoogLeNet"])
def test_a_stage_is_the_activated_one_before(name):
    taps = constructor(name)(num_classes=10)(torch.randn(2, 3, 32, 32)).taps
    stages = [tap for tap in taps if f"{tap}_pre" in taps]
    assert len(stages) in (3, 4)
    for stage in stages:
        assert torch.equal(taps[stage], taps[f"{stage}_pre"].relu())
        assert (taps[f"{stage}_pre"] < 0).any()


def test_wide_resnet_taps_the_norm_that_reads_each_raw_sum():
    network = constructor("wrn_16_2")(num_classes=10).eval()
    taps = network(torch.randn(2, 3, 32, 32)).taps
    readers = (network.block2.layer[0].bn1, network.block3.layer[0].bn1, network.bn1)
    for number, norm in enumerate(readers, start=1):
        assert torch.equal(taps[f"stage{number}_pre"], norm(taps[f"stage{number}"]))
        assert (taps[f"stage{number}"] < 0).any()


def test_shuffle_v1_has_the_released_keys():
    unit = ["conv1", "bn1", "conv2", "bn2", "conv3", "bn3"]
    expected = {"conv1", "bn1", "linear"} | {
        f"layer{stage}.{number}.{part}"
        for stage, units in ((1, 4), (2, 8), (3, 4))
        for number in range(units)
        for part in unit
    }
    keys = constructor("ShuffleV1")(num_classes=10).state_dict()
    assert {key.rpartition(".")[0] for key in keys} == expected


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "vgg8", "MobileNetV2", "ResNet18"])
def test_first_weights_have_the_published_spread(name):
    torch.manual_seed(0)
    network = constructor(name)(num_classes=10)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    for conv in convolutions:
        std = (2 / (conv.kernel_size[0] ** 2 * conv.out_channels)) ** 0.5
        tolerance = 5 / (2 * conv.weight.numel()) ** 0.5  # five standard errors
        assert conv.weight.std().item() == pytest.approx(std, rel=tolerance)
        assert conv.bias is None or not conv.bias.any()
    classifier = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    if name in ("vgg8", "MobileNetV2"):
        assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert classifier.bias.any() == name.lower().startswith("resnet")


RESNET_TAPS = {"stage1": "layer1", "stage4": "layer4"}


@pytest.mark.parametrize(("build", "channels"), [(timm_model, 1), (torchvision_model, 3)])
def test_foreign_network_by_name(build, channels):
    network = build("resnet18", num_classes=10, in_channels=channels, taps=RESNET_TAPS)
    assert network.TAPS == ("stage1", "stage4", "pooled")
    images = torch.randn(2, channels, 64, 64)
    output = network(images)
    shapes = {name: list(value.shape) for name, value in output.taps.items()}
    assert shapes == {"stage1": [2, 64, 16, 16], "stage4": [2, 512, 2, 2], "pooled": [2, 512]}
    assert tuple(shapes) == network.TAPS
    assert torch.equal(output.logits, network.fc(output.taps["pooled"]))
    assert {norm.num_batches_tracked.item() for norm in batch_norms(network)} == {1}
    output.logits.sum().backward()
    assert "fc.weight" in network.state_dict()  # the library's own keys, without a prefix


@pytest.mark.parametrize("build", [timm_model, torchvision_model])
def test_a_copy_of_a_foreign_network_keeps_its_taps_to_itself(build):
    network = build("resnet18", num_classes=10, taps=RESNET_TAPS)
    network(torch.randn(2, 3, 32, 32))
    twin = copy.deepcopy(network).eval()
    network.eval()
    images, others = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        first, copied, second = network(images), twin(others), network(images)
        assert torch.equal(copied.logits, network(others).logits)
    for name in network.TAPS:
        assert torch.equal(first.taps[name], second.taps[name])
        assert not torch.equal(first.taps[name], copied.taps[name])
    twin(others).logits.sum().backward()
    assert all(value.grad is None for value in network.parameters())


def test_a_tap_before_an_in_place_activation_keeps_its_values():
    network = torchvision_model("resnet18", num_classes=10, taps={"stem_pre": "bn1"})
    assert (network(torch.randn(2, 3, 32, 32)).taps["stem_pre"] < 0).any()


MAPS = {  # of the last stage, at 64 pixels
    "test_vit": [64, 4, 4],
    "deit_tiny_distilled_patch16_224": [192, 4, 4],
    "swin_tiny_patch4_window7_224": [768, 2, 2],
    "mixer_s32_224": [512, 2, 2],
    "resmlp_12_224": [384, 4, 4],
    "test_convnext": [64, 2, 2],
    "mobilenetv4_conv_small_035": [336, 2, 2],
    "test_efficientnet": [64, 2, 2],
}
FIXED = ("vit", "deit", "swin", "mixer", "resmlp")  # names of those that are made for one size


@pytest.mark.parametrize("name", MAPS)
def test_stages_are_maps_of_any_family(name):
    settings = {"img_size": 64} if any(kind in name for kind in FIXED) else None
    network = timm_model(name, num_classes=10, taps="auto", settings=settings).eval()
    with torch.no_grad():
        output = network(torch.randn(1, 3, 64, 64))
    last = [tap for tap in network.TAPS if tap.startswith("stage")][-1]
    assert list(output.taps[last].shape[1:]) == MAPS[name]
    assert output.logits.shape == (1, 10)
    assert tuple(output.taps) == network.TAPS


def test_tokens_of_a_grid_are_in_its_order():
    paths = {"stage1": "blocks.2"}
    network = timm_model("test_vit", num_classes=10, taps=paths, settings={"img_size": 64}).eval()
    tokens = []
    network.blocks[2].register_forward_hook(lambda module, given, made: tokens.append(made))
    with torch.no_grad():
        found = network(torch.randn(2, 3, 64, 64)).taps["stage1"]
    assert torch.equal(found[:, :, 1, 2], tokens[0][:, 1 + 4 * 1 + 2])


def test_both_heads_of_a_distilled_deit_are_tapped():
    settings = {"img_size": 32, "depth": 1}
    network = timm_model("deit_tiny_distilled_patch16_224", num_classes=10, settings=settings)
    output = network.eval()(torch.randn(2, 3, 32, 32))
    both = (output.taps["head"] + output.taps["head_dist"]) / 2
    torch.testing.assert_close(output.logits, both)


def test_a_network_s_own_size_and_normalisation():
    """A network of 64 pixels and its own normalisation sees what timm would have given it."""
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    network = timm_model("test_resnet", num_classes=10, size=64, mean=mean, std=std).eval()
    plain = timm_model("test_resnet", num_classes=10).eval()
    plain.load_state_dict(network.state_dict())
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    theirs = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    adapt_input(network, *theirs)
    with torch.no_grad():
        found = network(normalise(pixels, *theirs)).logits
        large = F.interpolate(
            normalise(pixels, mean, std), (64, 64), mode="bicubic", antialias=True
        )
        torch.testing.assert_close(found, plain(large).logits, rtol=1e-3, atol=1e-4)
        twin = copy.deepcopy(network)
        assert torch.equal(twin(normalise(pixels, *theirs)).logits, found)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"size": 0}, "size must be 1 pixel or more, not 0"),
        ({"mean": [0.5] * 3}, "mean and std are one normalisation: set both"),
        ({"mean": [0.5], "std": [0.5]}, "must be 3 numbers each"),
        ({"mean": [0.5] * 3, "std": [0.0] * 3}, "and std above 0"),
        ({"settings": {"checkpoint_path": "x"}}, "takes no setting checkpoint_path='x'"),
        ({"settings": {"act_layer": "os.system"}}, "takes no setting act_layer='os.system'"),
    ],
)
def test_an_input_or_setting_that_cannot_be_is_one_line(settings, line):
    with pytest.raises(ConfigError) as error:
        timm_model("test_resnet", num_classes=10, **settings)
    assert line in str(error.value)


def test_weights_that_are_not_there_are_named(monkeypatch):
    def offline(*_, **settings):
        raise OSError("no route to host")

    monkeypatch.setattr(tapped.timm, "create_model", offline)
    line = (
        r"test_resnet with pretrained=true needs its weights \(no route.*fetch model.safetensors of"
    )
    with pytest.raises(ConfigError, match=line):
        timm_model("test_resnet", num_classes=10, pretrained=True)


def test_a_setting_that_timm_cannot_build_with_is_no_matter_of_weights():
    changes = "student.model=test_resnet", "student.settings={stem_width: -1}"
    node = compose_group("student", "timm", *changes)
    with pytest.raises(ConfigError) as told:
        make(node, num_classes=10)
    line = "cannot be built with these settings: RuntimeError Trying to create tensor with negative"
    assert line in str(told.value)
    assert "pretrained" not in str(told.value)


@pytest.mark.parametrize("build", [timm_model, torchvision_model])
def test_mistakes_are_one_line_with_the_nearest_name(build):
    with pytest.raises(ConfigError, match=r"has no model 'resnet_18': did you mean 'resnet18'\?$"):
        build("resnet_18", num_classes=10)
    with pytest.raises(ConfigError, match=r"^resnet18 has no module 'layer_1' for stage1: did you"):
        build("resnet18", num_classes=10, taps={"stage1": "layer_1"})
    with pytest.raises(ConfigError, match="'pooled' is always offered"):
        build("resnet18", num_classes=10, taps={"pooled": "fc"})


def test_what_torchvision_cannot_do_is_one_line():
    with pytest.raises(ConfigError, match="takes 3 channels, not 1: use a timm model"):
        torchvision_model("resnet18", num_classes=10, in_channels=1)
    with pytest.raises(ConfigError, match=r"did you mean 'IMAGENET1K_V1'\?$"):
        torchvision_model("resnet18", num_classes=10, weights="IMAGENET1K_V")
    with pytest.raises(ConfigError, match="have 1000 classes, not 10"):
        torchvision_model("resnet18", num_classes=10, weights="IMAGENET1K_V1")
    with pytest.raises(ConfigError, match="auxiliary"):
        torchvision_model("googlenet", num_classes=10)
    with pytest.raises(ConfigError, match="no single linear classifier"):
        torchvision_model("squeezenet1_0", num_classes=10)


def test_a_tap_that_gives_no_tensor_is_one_line():
    network = torchvision_model("vit_b_32", num_classes=10, taps={"stage1": "encoder.dropout"})
    layers = "encoder.layers.encoder_layer_0.self_attention"
    pairs = torchvision_model("vit_b_32", num_classes=10, taps={"stage1": layers})
    unused = torchvision_model("vit_b_32", num_classes=10, taps={"stage1": f"{layers}.out_proj"})
    image = torch.zeros(1, 3, 224, 224)
    with torch.no_grad():
        assert network(image).taps["stage1"].shape == (1, 50, 768)
        with pytest.raises(ConfigError, match="returns a tuple, a tap must be a tensor"):
            pairs(image)
        with pytest.raises(ConfigError, match="the network does not run its module"):
            unused(image)


@pytest.mark.parametrize("name", network_names())
def test_goes_on_from_any_stage(name):
    """Resumed with a stage's map it gives what the whole network gave, tap by tap."""
    torch.manual_seed(0)
    network = constructor(name)(num_classes=5).eval()
    sizes = (32,) if name != "vgg8" else (32, 64)
    for size in sizes:
        with torch.no_grad():
            whole = network(torch.rand(2, 3, size, size))
            stages = [tap for tap in whole.taps if tap[:-1] == "stage"]
            assert len(stages) >= 3
            for number, tap in enumerate(("stem", *stages)):
                resumed = network.resume(number, whole.taps[tap])
                later = list(whole.taps)[0 if number == 0 else list(whole.taps).index(tap) + 2 :]
                assert list(resumed.taps) == later
                torch.testing.assert_close(resumed.logits, whole.logits)
                for key in later:
                    torch.testing.assert_close(resumed.taps[key], whole.taps[key])
