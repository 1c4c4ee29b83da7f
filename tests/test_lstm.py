import pytest
import torch

from seqssgd.models.lstm import ZAREMBA, LSTMLanguageModel

torch.set_num_threads(1)


def slow_lstm(model: LSTMLanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    """The equations of Zaremba et al. (section 3), one time step and one layer at a time, without dropout."""
    layers, hidden_size = model.lstm.num_layers, model.lstm.hidden_size
    h = [torch.zeros(tokens.shape[1], hidden_size) for _ in range(layers)]
    c = [torch.zeros(tokens.shape[1], hidden_size) for _ in range(layers)]
    logits = []
    for row in tokens:
        x = model.embedding.weight[row]
        for k in range(layers):
            w_ih, w_hh, b_ih, b_hh = (
                getattr(model.lstm, f"{n}_l{k}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            i, f, g, o = (x @ w_ih.T + b_ih + h[k] @ w_hh.T + b_hh).chunk(4, dim=1)
            c[k] = f.sigmoid() * c[k] + i.sigmoid() * g.tanh()
            h[k] = o.sigmoid() * c[k].tanh()
            x = h[k]
        logits.append(x @ model.output.weight.T + model.output.bias)
    return torch.stack(logits)


@pytest.mark.parametrize(
    ("name", "count"), [("small", 4_653_200), ("medium", 19_780_400), ("large", 66_034_000), ("rnn300", 6_732_400)]
)
def test_published_models_have_the_published_number_of_parameters(name, count):
    with torch.device("meta"):
        model = LSTMLanguageModel(vocab_size=10_000, **ZAREMBA[name])
    assert sum(p.numel() for p in model.parameters()) == count


def test_forward_equals_the_equations_and_state_carries_over():
    torch.manual_seed(0)
    model = LSTMLanguageModel(11, 6, 2, dropout=0.5, init_scale=0.5).eval()
    tokens = torch.randint(11, (7, 3))
    logits, _ = model(tokens)
    assert logits.shape == (7, 3, 11)
    torch.testing.assert_close(logits, slow_lstm(model, tokens))
    first, state = model(tokens[:4], model.zero_state(3))
    second, _ = model(tokens[4:], state)
    torch.testing.assert_close(torch.cat([first, second]), logits)


def test_every_parameter_starts_uniform_within_the_scale():
    torch.manual_seed(0)
    model = LSTMLanguageModel(500, 40, 2, init_scale=0.04)
    names = dict(model.named_parameters())
    assert len(names) == 1 + 8 + 2
    for name, parameter in names.items():
        assert parameter.abs().max() <= 0.04, name
        assert parameter.abs().max() > 0.035, name
        assert parameter.std().item() == pytest.approx(0.04 / 3**0.5, rel=0.15), name


def test_dropout_spares_the_recurrent_path():
    """With the embedding, between-layer and output dropout at 0.5, activations vanish, but the state never does."""
    torch.manual_seed(0)
    model = LSTMLanguageModel(11, 64, 2, dropout=0.5, init_scale=0.5).train()
    recurrent = []
    model.output.register_forward_pre_hook(lambda _, args: recurrent.append(args[0]))
    inputs = []
    model.lstm.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    _, (hidden, _) = model(torch.randint(11, (30, 4)))
    for activations in (inputs[0], recurrent[0]):
        assert (activations == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (hidden == 0).sum() == 0
    # between the layers: layer 2 of a model without embedding dropout still sees noise
    model.dropout.p = 0.0
    tokens = torch.randint(11, (5, 2))
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
    assert model.lstm.dropout == 0.5


def test_a_single_layer_with_dropout_is_quiet_and_still_drops():
    model = LSTMLanguageModel(11, 16, 1, dropout=0.5).train()  # warnings are errors
    tokens = torch.randint(11, (5, 2))
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
    model.eval()
    assert torch.equal(model(tokens)[0], model(tokens)[0])


@pytest.mark.parametrize(
    "bad", [{"dropout": 1.0}, {"dropout": float("nan")}, {"hidden_size": 0}, {"init_scale": 0.0}, {"num_layers": 0}]
)
def test_impossible_settings_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        LSTMLanguageModel(**{"vocab_size": 10, "hidden_size": 4, "num_layers": 1} | bad)
