"""The hypernetwork of HyperDreamBooth (Ruiz et al. 2023, arXiv 2307.06949, section 4.2): image features -> adapter.

``theta_k = theta_{k-1} + T(f, theta_{k-1})``: a transformer decoder T with one token per adapted layer attends to the
image tokens f and predicts how each layer's parameters change. The image is encoded once, T runs K times.

| symbol | meaning                                                                                |
|--------|----------------------------------------------------------------------------------------|
| f      | image tokens, the output of the image encoder, ``[batch, tokens, encoder_width]``      |
| theta  | all parameters of an adapter, ``[batch, N]``, see :mod:`..adapters.parameter_layout`   |
| z      | the P predicted parameters, normalized: ``(theta - mean) / scale`` per parameter,      |
|        | ``[batch, P]``, layer by layer                                                         |
| K      | number of refinements                                                                  |

The paper does not give widths, heads, the scale of the output or the initialization; these are our choice. ``theta_0``
here is not constant: it is a linear regression on the pooled tokens, see :meth:`HyperNetwork.set_linear_init`. Where
the subjects of a bank share a factor (LiDB's B_train, the down factor), it can be learned with the network: the learned
shared factor, see ``learnt_input`` of :class:`HyperNetworkConfig`.

The attribute names of :class:`HyperNetwork` and the fields of its config are part of the file format.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..adapters.parameter_layout import ParameterLayout

HEAD_STD = 1e-3
"""Initial standard deviation of the output heads; with zeros no gradient would reach the decoder."""


@dataclass(frozen=True, kw_only=True)
class HyperNetworkConfig:
    """Sizes of the network; all but the depth are our choice.

    Args:
        width: of the decoder's tokens.
        depth: number of decoder layers, 2 in the paper.
        heads: attention heads of the decoder.
        refinements: K, 4 in other implementations.
        directions: rank of the linear initialization; 0 initializes with the mean.
        shared_input: whether the factor on the input side (B_train) is shared by all subjects. It is then not predicted
            but taken from the mean, and the weight change is linear in what is predicted.
        learnt_input: whether the shared factor is learned with the network, starting from the mean. It spans the
            directions in which subjects can differ.
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
            raise ValueError("learnt_input needs a bank whose subjects share a factor; build it with shared_input")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}; give a multiple")


class HyperNetwork(nn.Module):
    """Network from image features to adapter parameters. Use :meth:`create`: the constructor leaves memory undefined.

    Args:
        config: the sizes.
        layout: of theta.
        encoder_width: width of the image encoder's tokens.
    """

    def __init__(self, config: HyperNetworkConfig, layout: ParameterLayout, encoder_width: int):
        super().__init__()
        self.config, self.layout, self.encoder_width = config, layout, encoder_width
        self._predicted, self._slots, slots = _token_slots(layout, config.shared_input)
        layers, width = len(layout.targets), config.width
        self.features = nn.Sequential(nn.LayerNorm(encoder_width), nn.Linear(encoder_width, width))
        self.position = nn.Parameter(torch.empty(layers, width))
        self.entry = nn.Parameter(torch.empty(layers, slots, width))
        decoder_layer = nn.TransformerDecoderLayer(
            width, config.heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(decoder_layer, config.depth, nn.LayerNorm(width))
        self.heads = nn.Parameter(torch.empty(layers, width, slots))
        self._shared = _complement(self._predicted, layout.parameter_count)
        self.input_side = nn.Parameter(torch.empty(len(self._shared))) if config.learnt_input else None
        self.guess = (
            _LowRankLinear(config.directions, 3 * encoder_width, len(self._predicted)) if config.directions else None
        )
        self.register_buffer("mean", torch.empty(layout.parameter_count))
        self.register_buffer("scale", torch.empty(layout.parameter_count))

    @classmethod
    def create(
        cls, config: HyperNetworkConfig, layout: ParameterLayout, encoder_width: int, generator: torch.Generator
    ) -> "HyperNetwork":  # fmt: skip
        """Return an initialized network, which predicts zeros before :meth:`set_normalization`.

        Args:
            config: the sizes.
            layout: of theta.
            encoder_width: width of the image encoder's tokens.
            generator: of the initial weights.
        """
        with torch.inference_mode(False), torch.no_grad():
            network = cls.empty(config, layout, encoder_width).to_empty(device="cpu")
            network._initialize(generator)
        return network

    @classmethod
    def empty(cls, config: HyperNetworkConfig, layout: ParameterLayout, encoder_width: int) -> "HyperNetwork":
        """Return a network on the meta device: shapes without memory, and no draw from the global generator.

        Args:
            config: the sizes.
            layout: of theta.
            encoder_width: width of the image encoder's tokens.
        """
        with torch.inference_mode(False), torch.device("meta"):
            return cls(config, layout, encoder_width)

    @torch.no_grad()
    def copy(self, refinements: int | None = None, learnt_input: bool = False) -> "HyperNetwork":
        """Return a copy on the CPU.

        Args:
            refinements: K of the copy; None keeps it.
            learnt_input: whether the copy learns the shared factor, starting from the mean; False keeps the setting.
        """
        config = self.config if refinements is None else replace(self.config, refinements=refinements)
        config = replace(config, learnt_input=config.learnt_input or learnt_input)
        with torch.inference_mode(False):
            state = {name: value.to("cpu", copy=True) for name, value in self.state_dict().items()}
            copy = HyperNetwork.empty(config, self.layout, self.encoder_width)
            if config.learnt_input:
                state.setdefault("input_side", torch.zeros(len(self._shared)))
            copy.load_state_dict(state, assign=True)
        return copy

    def _initialize(self, generator: torch.Generator) -> None:
        """Draw weights normal with variance 1 / inputs, heads with :data:`HEAD_STD`; norms are 1, biases zero."""
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
    def set_normalization(self, mean: Tensor, scale: Tensor) -> None:
        """Set the normalization of z: ``theta = mean + scale z``, both ``[N]``.

        A parameter with scale 0 is predicted as its mean, and so is a shared factor.
        """
        self.mean.copy_(mean)
        self.scale.zero_()
        self.scale[self._predicted] = scale[self._predicted]

    @torch.no_grad()
    def set_linear_init(self, weight: Tensor, bias: Tensor, directions: Tensor) -> None:
        """Set the linear initialization ``z_0 = directions (weight p + bias)`` on the pooled tokens p.

        Args:
            weight: ``[k, 3 encoder_width]``, k at most the config's ``directions``; the remaining ones stay zero.
            bias: ``[k]``.
            directions: ``[N, k]``.
        """
        count, guess = len(weight), self.guess
        guess.weight[:count], guess.bias[:count] = weight, bias
        guess.directions[:, :count] = directions[self._predicted]

    def forward(self, features: Tensor) -> Tensor:
        """Return ``theta_K [batch, N]`` for ``features [batch, tokens, encoder_width]`` in float32."""
        return self.theta(self.predict_z(features))

    def theta(self, z: Tensor) -> Tensor:
        """Return ``theta [batch, N] = mean + scale z``; a learned shared factor is added to its part of the mean."""
        predicted = self._predicted.to(z.device)
        theta = self.mean.expand(len(z), -1).index_add(1, predicted, self.scale[predicted] * z)
        if self.input_side is None:
            return theta
        return theta.index_add(1, self._shared.to(z.device), self.input_side.expand(len(z), -1))

    def mean_prediction(self) -> Tensor:
        """Return ``theta [N]`` at z = 0: the mean subject, with the learned shared factor."""
        return self.theta(self.mean.new_zeros(1, len(self._predicted)))[0]

    def predict_z(self, features: Tensor) -> Tensor:
        """Return ``z_K [batch, P]`` for ``features [batch, tokens, encoder_width]``."""
        f, z = self.features(features), self.initial_z(features)
        for _ in range(self.config.refinements):
            z = z + self._step(f, z)
        return z

    def initial_z(self, features: Tensor) -> Tensor:
        """Return ``z_0 [batch, P]``: the linear regression on the pooled tokens, or zeros without directions."""
        if self.guess is None:
            return features.new_zeros(len(features), len(self._predicted))
        return self.guess(pooled(features))

    def _step(self, f: Tensor, z: Tensor) -> Tensor:
        """Return ``T(f, z) [batch, P]``.

        Each layer's parameters become a token, plus the layer's position embedding; its head maps the decoded token.
        """
        slots, (layers, count, _) = self._slots.to(z.device), self.entry.shape
        padded = z.new_zeros(len(z), layers * count).index_copy(1, slots, z)
        tokens = torch.einsum("bls,lsw->blw", padded.view(-1, layers, count), self.entry) + self.position
        change = torch.einsum("blw,lws->bls", self.decoder(tokens, f), self.heads)
        return change.flatten(1)[:, slots]

    def describe(self) -> str:
        """Return the line for reports: size of the network, and what it predicts."""
        config = self.config
        size = sum(parameter.numel() for parameter in self.parameters())
        return (
            f"hypernetwork of {size:,} parameters (width {config.width}, depth {config.depth}, "
            f"{config.refinements} refinements) for a {self.layout.describe()}"
        )


class _LowRankLinear(nn.Module):
    """The linear map ``directions (weight p + bias)`` of low rank."""

    def __init__(self, rank: int, inputs: int, outputs: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(rank, inputs)), nn.Parameter(torch.empty(rank))
        self.directions = nn.Parameter(torch.empty(outputs, rank))

    def forward(self, p: Tensor) -> Tensor:
        return (p @ self.weight.mT + self.bias) @ self.directions.mT


def pooled(features: Tensor) -> Tensor:
    """Pool ``[batch, tokens, width] -> [batch, 3 width]``: first token, mean, and standard deviation of all tokens.

    The first token is the class token, where the encoder has one.
    """
    deviation = features.var(1, unbiased=False).clamp(min=1e-12).sqrt()
    return torch.cat([features[:, 0], features.mean(1), deviation], -1)


def _complement(indices: Tensor, size: int) -> Tensor:
    """Return those of ``range(size)`` that are not in ``indices``."""
    with torch.device("cpu"):
        left = torch.ones(size, dtype=torch.bool)
        left[indices] = False
        return left.nonzero().flatten()


def _token_slots(layout: ParameterLayout, shared_input: bool) -> tuple[Tensor, Tensor, int]:
    """Return where the predicted parameters are.

    Returns:
        Their indices in theta ``[P]``; their indices in the layers' tokens, flattened and padded to one length ``[P]``;
        and that length.
    """
    with torch.device("cpu"):
        parts = layout.unflatten(torch.arange(layout.parameter_count)).values()
        rows = [[tensor.flatten() for tensor in tensors.values()] for tensors in parts]
        indices = [torch.cat(row[:1] if shared_input else row) for row in rows]
        longest = max(map(len, indices))
        slots = [torch.arange(len(row)) + longest * layer for layer, row in enumerate(indices)]
        return torch.cat(indices), torch.cat(slots), longest
