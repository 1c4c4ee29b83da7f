"""How much of other libraries' models noise reaches: what noise_groups makes of them, and what it leaves alone.

    pip install transformers peft speechbrain xlstm s5-pytorch mambapy fastai bitsandbytes
    python benchmarks/coverage.py [--models gpt2 mamba] [--json results/benchmarks/coverage.json]

For each model: the share of its trained parameters that are perturbed, biases and gains not counted, and the rest with
its reasons. Models of transformers have the size of their default configuration and no values (torch's "meta" device);
the others are small and have random weights. What cannot be built here is named with the reason. About a minute.
"""

import argparse
import importlib
import importlib.metadata
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import machine
from torch import Tensor, nn

from seqssgd.files import make_folder
from seqssgd.optim import noise_groups
from seqssgd.optim.groups import pattern_of
from seqssgd.optim.roles import NO_WEIGHTS
from seqssgd.speech.torchaudio_import import import_torchaudio

MODELS: dict[str, tuple[str, Callable[[], nn.Module]]] = {}  # name -> package, and what builds it


def add(name: str, package: str, build: Callable[[], nn.Module]) -> None:
    MODELS[name] = (package, build)


def transformers(architecture: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = importlib.import_module("transformers")
        with torch.device("meta"):
            return getattr(library, architecture)(getattr(library, config)(**settings))

    return build


for name, architecture, config, settings in (
    ("GPT-2", "GPT2LMHeadModel", "GPT2Config", {}),
    ("GPT-1", "OpenAIGPTLMHeadModel", "OpenAIGPTConfig", {}),
    ("ImageGPT", "ImageGPTForCausalImageModeling", "ImageGPTConfig", {}),
    ("Decision Transformer", "DecisionTransformerModel", "DecisionTransformerConfig", {}),
    ("Mixtral", "MixtralForCausalLM", "MixtralConfig", {}),
    ("Qwen3-MoE", "Qwen3MoeForCausalLM", "Qwen3MoeConfig", {}),
    ("gpt-oss", "GptOssForCausalLM", "GptOssConfig", {}),
    ("OLMoE", "OlmoeForCausalLM", "OlmoeConfig", {}),
    ("Llama 4", "Llama4ForCausalLM", "Llama4TextConfig", {}),
    ("Jamba", "JambaForCausalLM", "JambaConfig", {}),
    ("DeepSeek-V3", "DeepseekV3ForCausalLM", "DeepseekV3Config", {}),
    ("XLNet", "XLNetLMHeadModel", "XLNetConfig", {}),
    ("Mamba", "MambaForCausalLM", "MambaConfig", {}),
    ("Mamba-2", "Mamba2ForCausalLM", "Mamba2Config", {}),
    ("RWKV", "RwkvForCausalLM", "RwkvConfig", {}),
    ("RecurrentGemma", "RecurrentGemmaForCausalLM", "RecurrentGemmaConfig", {}),
    ("Qwen3-Next", "Qwen3NextForCausalLM", "Qwen3NextConfig", {}),
    ("BERT", "BertForMaskedLM", "BertConfig", {}),
    ("T5", "T5ForConditionalGeneration", "T5Config", {}),
    ("Whisper", "WhisperForConditionalGeneration", "WhisperConfig", {}),
    ("wav2vec 2.0", "Wav2Vec2ForCTC", "Wav2Vec2Config", {}),
    ("ViT", "ViTForImageClassification", "ViTConfig", {}),
    ("Swin", "SwinForImageClassification", "SwinConfig", {}),
    ("ConvNeXt V2", "ConvNextV2ForImageClassification", "ConvNextV2Config", {}),
):
    add(name, "transformers", transformers(architecture, config, **settings))


def small_llama() -> nn.Module:
    library = importlib.import_module("transformers")
    config = library.LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=1000,
    )
    return library.LlamaForCausalLM(config)


def peft(config: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = importlib.import_module("peft")
        return library.get_peft_model(small_llama(), getattr(library, config)(**settings))

    return build


QUERY_VALUE = ["q_proj", "v_proj"]
for name, config, settings in (
    ("LoRA", "LoraConfig", {"target_modules": QUERY_VALUE}),
    ("DoRA", "LoraConfig", {"target_modules": QUERY_VALUE, "use_dora": True}),
    ("AdaLoRA", "AdaLoraConfig", {"target_modules": QUERY_VALUE, "total_step": 10}),
    ("LoHa", "LoHaConfig", {"target_modules": QUERY_VALUE}),
    ("LoKr", "LoKrConfig", {"target_modules": QUERY_VALUE}),
    ("OFT", "OFTConfig", {"target_modules": QUERY_VALUE, "oft_block_size": 32}),
    ("prefix tuning", "PrefixTuningConfig", {"num_virtual_tokens": 8, "task_type": "CAUSAL_LM"}),
    ("IA3", "IA3Config", {"target_modules": ["k_proj", "v_proj"], "feedforward_modules": []}),
    ("VeRA", "VeraConfig", {"target_modules": ["q_proj"]}),
):
    add(name, "peft", peft(config, **settings))


def qlora() -> nn.Module:
    """LoRA over 4-bit weights."""
    layers = importlib.import_module("bitsandbytes").nn
    model = small_llama()
    for module in list(model.model.modules()):
        for attribute, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                quantized = layers.Linear4bit(child.in_features, child.out_features, bias=False)
                quantized.load_state_dict(child.state_dict())
                setattr(module, attribute, quantized.to("cpu"))  # the move is what quantizes
    library = importlib.import_module("peft")
    return library.get_peft_model(model, library.LoraConfig(target_modules=QUERY_VALUE))


add("QLoRA", "bitsandbytes", qlora)


def speechbrain(module: str, name: str, *args: Any, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(importlib.import_module(f"speechbrain.{module}"), name)(*args, **settings)


BRANCHFORMER = {"num_layers": 2, "d_model": 144, "nhead": 4, "kernel_size": 31, "csgu_linear_units": 288}
RNN = {"hidden_size": 64, "input_shape": (4, 10, 64), "num_layers": 2}
for name, module, architecture, settings in (
    ("Conformer", "lobes.models.transformer.Conformer", "ConformerEncoder",
     {"num_layers": 2, "d_model": 144, "d_ffn": 576, "nhead": 4, "kernel_size": 31}),
    ("Branchformer", "lobes.models.transformer.Branchformer", "BranchformerEncoder", BRANCHFORMER),
    ("Branchformer, HyperMixing", "lobes.models.transformer.Branchformer", "BranchformerEncoder",
     {**BRANCHFORMER, "attention_type": "hypermixing"}),
    ("QLSTM", "nnet.quaternion_networks.q_RNN", "QLSTM", RNN),
    ("CLSTM", "nnet.complex_networks.c_RNN", "CLSTM", RNN),
    ("LiGRU", "nnet.RNN", "LiGRU", RNN),
):  # fmt: skip
    add(name, "speechbrain", speechbrain(module, architecture, **settings))


def xlstm() -> nn.Module:
    library = importlib.import_module("xlstm")
    return library.xLSTMLMModel(
        library.xLSTMLMModelConfig(
            vocab_size=1000,
            context_length=64,
            num_blocks=4,
            embedding_dim=128,
            slstm_at=[1],
            mlstm_block=library.mLSTMBlockConfig(mlstm=library.mLSTMLayerConfig(num_heads=4)),
            slstm_block=library.sLSTMBlockConfig(
                slstm=library.sLSTMLayerConfig(backend="vanilla", num_heads=4),
                feedforward=library.FeedForwardConfig(proj_factor=1.3, act_fn="gelu"),
            ),
        )
    )


def s5() -> nn.Module:
    block = importlib.import_module("s5").S5Block
    return nn.Sequential(nn.Linear(8, 128), block(128, 128, False), block(128, 128, False), nn.Linear(128, 10))


def mamba_ssm() -> nn.Module:
    return importlib.import_module("mamba_ssm").Mamba(d_model=128)


def mambapy() -> nn.Module:
    library = importlib.import_module("mambapy.mamba")
    return library.Mamba(library.MambaConfig(d_model=128, n_layers=2))


def awd_lstm() -> nn.Module:
    return importlib.import_module("fastai.text.models.awdlstm").AWD_LSTM(1000, 100, 150, 2)


add("xLSTM", "xlstm", xlstm)
add("S5", "s5-pytorch", s5)
add("Mamba of mambapy", "mambapy", mambapy)
add("Mamba of mamba-ssm", "mamba-ssm", mamba_ssm)
add("AWD-LSTM", "fastai", awd_lstm)


class CellByHand(nn.Module):
    """An LSTM cell as in a textbook."""

    def __init__(self, inputs: int, units: int):
        super().__init__()
        self.W, self.U = nn.Parameter(torch.randn(4 * units, inputs)), nn.Parameter(torch.randn(4 * units, units))
        self.b = nn.Parameter(torch.zeros(4 * units))

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = (x @ self.W.T + h @ self.U.T + self.b).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class LanguageModelByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.cell, self.out = nn.Embedding(100, 128), CellByHand(128, 128), nn.Linear(128, 100)

    def forward(self, tokens: Tensor) -> Tensor:
        h = c = torch.zeros(tokens.shape[1], 128)
        for x in self.embed(tokens).unbind():
            h, c = self.cell(x, h, c)
        return self.out(h)


class S4D(nn.Module):
    """Parameters of the diagonal state space of Gu et al. (2022), under the names that its authors give them."""

    def __init__(self, units: int, states: int = 64):
        super().__init__()
        self.C, self.log_dt = nn.Parameter(torch.randn(units, states // 2, 2)), nn.Parameter(torch.randn(units))
        self.log_A_real, self.A_imag = (nn.Parameter(torch.randn(units, states // 2)) for _ in range(2))
        self.D = nn.Parameter(torch.randn(units))
        self.output_linear = nn.Sequential(nn.Conv1d(units, 2 * units, 1), nn.GLU(dim=-2))


add("S4D by hand", "torch", lambda: nn.Sequential(nn.Linear(3, 128), S4D(128), S4D(128), nn.Linear(128, 10)))
add("LSTM cell by hand", "torch", LanguageModelByHand)
add("the same, TorchScript", "torch", lambda: torch.jit.script(LanguageModelByHand()))
add("the same, exported", "torch",
    lambda: torch.export.export(LanguageModelByHand(), (torch.zeros(2, 3, dtype=torch.long),)).module())  # fmt: skip


def measure(name: str) -> dict[str, Any]:
    """What noise_groups makes of a model: sizes, what is left alone, and whether it warned or refused."""
    package, build = MODELS[name]
    figures: dict[str, Any] = {"package": package}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = build()
    except (ImportError, OSError) as error:
        return {**figures, "missing": (str(error).strip() or type(error).__name__).splitlines()[0]}
    figures["parameters"] = sum(p.numel() for p in model.parameters())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            groups = noise_groups(model, noise=0.5)
        except ValueError as error:
            return {**figures, "refused": str(error)}
    sizes: dict[str, int] = {}
    left: dict[str, list[str]] = {}
    for group in groups:
        for p, parameter, kind in zip(group["params"], group["names"], group["roles"], strict=True):
            sort = "frozen" if not p.requires_grad else "perturbed" if group["noise"] else kind
            sizes[sort] = sizes.get(sort, 0) + p.numel()
            if sort not in ("frozen", "perturbed", *NO_WEIGHTS):
                left.setdefault(kind, []).append(pattern_of(parameter))
    weights = sum(size for sort, size in sizes.items() if sort not in ("frozen", *NO_WEIGHTS))
    return {
        **figures,
        "trained": figures["parameters"] - sizes.get("frozen", 0),
        "weights": weights,
        "perturbed": sizes["perturbed"],
        "left": {kind: [sizes[kind], list(dict.fromkeys(names))] for kind, names in left.items()},
        "warned": any("noise_groups leaves" in str(warning.message) for warning in caught),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    if args.json:
        make_folder(args.json.parent)
    import_torchaudio()  # transformers and speechbrain import it, and cannot where its C++ extension does not load
    found = {}
    for name in args.models:
        found[name] = figures = measure(name)
        shown = figures.get("missing") or figures.get("refused")
        if shown is None:
            shown = f"{figures['perturbed'] / figures['weights']:.2%} of the weights; left alone: {figures['left']}"
        print(f"{name}: {shown}", flush=True)
    versions = {}
    for package in dict.fromkeys(package for package, _ in MODELS.values()):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "packages": versions, "models": found}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
