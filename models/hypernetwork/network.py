"""The hypernetwork of HyperDreamBooth (Ruiz et al. 2023, arXiv 2307.06949, section 4.2): a picture -> an adapter.

``theta_k = theta_{k-1} + T(f, theta_{k-1})``: a transformer decoder T with one token per adapted layer looks at the
picture's tokens f and says how each layer's numbers should change; the picture is encoded once, T runs K times.

| symbol | meaning                                                                           |
|--------|-----------------------------------------------------------------------------------|
| f      | the picture's tokens, as its encoder gives them, ``[batch, tokens, width_of_encoder]`` |
| theta  | all numbers of an adapter, ``[batch, N]``, see :mod:`.layout`                       |
| z      | those that are predicted, P of them, in units of how much people differ:           |
|        | ``(theta - mean) / scale``, per number, ``[batch, P]``, layer by layer              |
| K      | refinements                                                                       |

The paper leaves widths, heads, the output's scale and the start open: all of that is our choice, and the start
``theta_0`` here is not one for all but a linear guess from the pooled tokens, see :meth:`HyperNetwork.begin`. Where
people share a factor (LiDB's B_train), it can be learnt with the network: one for everybody, see ``learnt_input``.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..adapters.parameter_layout import ParameterLayout

HEAD_STD = 1e-3
"""Of the output heads at the start: not zero, which would keep all that is before them from learning (methods.md 4)."""


@dataclass(frozen=True)
class HyperNetworkConfig:
    """Sizes; all but the depth are our choice.

    Args:
        width: of the decoder's tokens.
        depth: layers of the decoder, 2 in the paper.
        heads: of its attention.
        refinements: K, 4 where others have said it.
        directions: principal directions of the bank that the linear guess spans; 0: the start is the mean.
        shared_input: the input side's factor is the same for everybody, so that a person is linear in what is left; it
            is the mean's.
        learnt_input: it is the mean's at first, and learnt with the network: it says what people can differ in.
    """

    width: int = 256
    depth: int = 2
    heads: int = 8
    refinements: int = 4
    directions: int = 64
    shared_input: bool = False
    learnt_input: bool = False

    def __post_init__(self) -> None:
        for name, least in (("width", 1), ("depth", 1), ("heads", 1), ("refinements", 1), ("directions", 0)):
            if not least <= getattr(self, name) <= 2**16:
                raise ValueError(f"{name} is {getattr(self, name)}; give a whole number from {least} to {2**16}")
        if self.learnt_input and not self.shared_input:
            raise ValueError("learnt_input is for a bank of people who share an input side; build it with shared_input")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}; give one")


class HyperNetwork(nn.Module):
    """Features of pictures -> numbers of adapters. Made by :meth:`create`; a bare one holds no numbers.

    Args:
        config: the sizes.
        layout: what the numbers mean.
        encoder_width: of the encoder's tokens.
    """

    def __init__(self, config: HyperNetworkConfig, layout: ParameterLayout, encoder_width: int):
        super().__init__()
        self.config, self.layout, self.encoder_width = config, layout, encoder_width
        self._places, self._slots, slots = _tokens_of(layout, config.shared_input)
        layers, width = len(layout.targets), config.width
        self.features = nn.Sequential(nn.LayerNorm(encoder_width), nn.Linear(encoder_width, width))
        self.position = nn.Parameter(torch.empty(layers, width))
        self.entry = nn.Parameter(torch.empty(layers, slots, width))
        one = nn.TransformerDecoderLayer(
            width, config.heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(one, config.depth, nn.LayerNorm(width))
        self.heads = nn.Parameter(torch.empty(layers, width, slots))
        self._shared = _others(self._places, layout.parameter_count)
        self.input_side = nn.Parameter(torch.empty(len(self._shared))) if config.learnt_input else None
        self.guess = _Guess(config.directions, 3 * encoder_width, len(self._places)) if config.directions else None
        self.register_buffer("mean", torch.empty(layout.parameter_count))
        self.register_buffer("scale", torch.empty(layout.parameter_count))

    @classmethod
    def create(
        cls, config: HyperNetworkConfig, layout: ParameterLayout, encoder_width: int, generator: torch.Generator
    ) -> "HyperNetwork":  # fmt: skip
        """A new one, that predicts zeros everywhere until :meth:`standardise` and :meth:`begin`."""
        with torch.inference_mode(False), torch.no_grad():
            network = cls.empty(config, layout, encoder_width).to_empty(device="cpu")
            network._draw(generator)
        return network

    @classmethod
    def empty(cls, config: HyperNetworkConfig, layout: ParameterLayout, encoder_width: int) -> "HyperNetwork":
        """The shapes alone, without memory and without a draw of the global generator."""
        with torch.inference_mode(False), torch.device("meta"):
            return cls(config, layout, encoder_width)

    @torch.no_grad()
    def copied(self, refinements: int | None = None, learnt_input: bool = False) -> "HyperNetwork":
        """A copy on the CPU; one that refines so often, and learns the shared factor, if that is said."""
        config = self.config if refinements is None else replace(self.config, refinements=refinements)
        config = replace(config, learnt_input=config.learnt_input or learnt_input)
        with torch.inference_mode(False):
            numbers = {name: value.to("cpu", copy=True) for name, value in self.state_dict().items()}
            copy = HyperNetwork.empty(config, self.layout, self.encoder_width)
            if config.learnt_input:
                numbers.setdefault("input_side", torch.zeros(len(self._shared)))
            copy.load_state_dict(numbers, assign=True)
        return copy

    def _draw(self, generator: torch.Generator) -> None:
        """Weights normal with variance 1 / inputs, norms at identity, biases zero; heads at :data:`HEAD_STD`."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(0.0 if "bias" in name else 1.0)
            else:
                inputs = parameter.shape[-2 if name == "entry" else -1]
                parameter.normal_(0, inputs**-0.5, generator=generator)
        self.position.normal_(0, 0.02, generator=generator)
        self.heads.normal_(0, HEAD_STD, generator=generator)
        guess = self.guess.parameters() if self.guess else ()
        for zero in (self.mean, self.scale, *guess, *([] if self.input_side is None else [self.input_side])):
            zero.zero_()

    @torch.no_grad()
    def standardise(self, mean: Tensor, scale: Tensor) -> None:
        """Predict around ``mean [N]``, in units of ``scale [N]``; a number whose scale is 0 stays at the mean, and what
        is shared is no picture's to say."""
        self.mean.copy_(mean)
        self.scale.zero_()
        self.scale[self._places] = scale[self._places]

    @torch.no_grad()
    def begin(self, weight: Tensor, bias: Tensor, directions: Tensor) -> None:
        """Start from the linear guess ``z_0 = directions (weight p + bias)`` of the pooled tokens p.

        Args:
            weight: ``[k, 3 width_of_encoder]``, k at most the config's ``directions``; the others stay zero.
            bias: ``[k]``.
            directions: ``[N, k]``.
        """
        count, guess = len(weight), self.guess
        guess.weight[:count], guess.bias[:count] = weight, bias
        guess.directions[:, :count] = directions[self._places]

    def forward(self, features: Tensor) -> Tensor:
        """``theta_K [batch, N]`` from ``features [batch, tokens, width_of_encoder]`` in float32."""
        return self.theta(self.standardised(features))

    def theta(self, z: Tensor) -> Tensor:
        """``mean + scale z``; what is shared is the mean's, and what was learnt beside it."""
        places = self._places.to(z.device)
        theta = self.mean.expand(len(z), -1).index_add(1, places, self.scale[places] * z)
        if self.input_side is None:
            return theta
        return theta.index_add(1, self._shared.to(z.device), self.input_side.expand(len(z), -1))

    def nobody(self) -> Tensor:
        """``theta [N]`` without a picture: the mean person, with what was learnt for everybody."""
        return self.theta(self.mean.new_zeros(1, len(self._places)))[0]

    def standardised(self, features: Tensor) -> Tensor:
        """``z_K [batch, P]``."""
        f, z = self.features(features), self.guessed(features)
        for _ in range(self.config.refinements):
            z = z + self._step(f, z)
        return z

    def guessed(self, features: Tensor) -> Tensor:
        """``z_0 [batch, P]``."""
        if self.guess is None:
            return features.new_zeros(len(features), len(self._places))
        return self.guess(pooled(features))

    def _step(self, f: Tensor, z: Tensor) -> Tensor:
        """``T(f, z)``: a token of each layer's numbers and its place, decoded, and through the layer's own head."""
        slots, (layers, count, _) = self._slots.to(z.device), self.entry.shape
        padded = z.new_zeros(len(z), layers * count).index_copy(1, slots, z)
        tokens = torch.einsum("bls,lsw->blw", padded.view(-1, layers, count), self.entry) + self.position
        change = torch.einsum("blw,lws->bls", self.decoder(tokens, f), self.heads)
        return change.flatten(1)[:, slots]

    def describe(self) -> str:
        """One line for reports."""
        config = self.config
        numbers = sum(parameter.numel() for parameter in self.parameters())
        return (
            f"hypernetwork of {numbers:,} numbers (width {config.width}, depth {config.depth}, "
            f"{config.refinements} refinements) for a {self.layout.describe()}"
        )


class _Guess(nn.Module):
    """``directions (weight p + bias)``: linear, of low rank."""

    def __init__(self, rank: int, inputs: int, numbers: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(rank, inputs)), nn.Parameter(torch.empty(rank))
        self.directions = nn.Parameter(torch.empty(numbers, rank))

    def forward(self, p: Tensor) -> Tensor:
        return (p @ self.weight.mT + self.bias) @ self.directions.mT


def pooled(features: Tensor) -> Tensor:
    """The first token (the class token, where there is one), mean and standard deviation of all:
    ``[batch, tokens, width] -> [batch, 3 width]``."""
    deviation = features.var(1, unbiased=False).clamp(min=1e-12).sqrt()
    return torch.cat([features[:, 0], features.mean(1), deviation], -1)


def _others(places: Tensor, numbers: int) -> Tensor:
    """Those of ``range(numbers)`` that are not among ``places``."""
    with torch.device("cpu"):
        left = torch.ones(numbers, dtype=torch.bool)
        left[places] = False
        return left.nonzero().flatten()


def _tokens_of(layout: ParameterLayout, shared_input: bool) -> tuple[Tensor, Tensor, int]:
    """Where predicted numbers are in theta, where in the layers' tokens (padded to one length), and that length."""
    with torch.device("cpu"):
        parts = layout.unflatten(torch.arange(layout.parameter_count)).values()
        rows = [[tensor.flatten() for tensor in tensors.values()] for tensors in parts]
        places = [torch.cat(row[:1] if shared_input else row) for row in rows]
        longest = max(map(len, places))
        slots = [torch.arange(len(place)) + longest * layer for layer, place in enumerate(places)]
        return torch.cat(places), torch.cat(slots), longest
