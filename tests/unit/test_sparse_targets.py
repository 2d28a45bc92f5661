import pytest
from torch import nn

from sparsegate.errors import ModelError
from sparsegate.sparse.targets import decoder_layers, find_targets, num_frozen_layers


@pytest.mark.parametrize(("frozen_depth", "frozen"), [(0.0, 0), (0.24, 0), (0.25, 1), (0.5, 2), (0.75, 3), (0.99, 3)])
def test_the_frozen_share_of_layers_leaves_at_least_one_to_train(tiny_model, frozen_depth, frozen):
    assert num_frozen_layers(tiny_model, frozen_depth) == frozen


def test_targets_are_the_linear_maps_of_each_trained_layer_in_order(any_model):
    targets = find_targets(any_model, first_layer=2)
    maps = 4 if any_model.config.model_type == "gpt2" else 7
    assert [target.layer for target in targets] == [2] * maps + [3] * maps
    assert all(any_model.get_submodule(target.name) is target.linear for target in targets)
    assert not any("lm_head" in target.name for target in targets)


def test_a_model_without_a_list_of_decoder_layers_is_refused(tiny_model):
    tiny_model.model.layers = nn.Sequential(*tiny_model.model.layers)
    with pytest.raises(ModelError, match="LlamaForCausalLM has no list of 4 decoder layers"):
        decoder_layers(tiny_model)


def test_layers_without_linear_maps_are_refused(tiny_model):
    for layer in tiny_model.model.layers:
        for name, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear):
                parent, _, child = name.rpartition(".")
                setattr(layer.get_submodule(parent), child, nn.Identity())
    with pytest.raises(ModelError, match="has no linear maps in layers 1 to 3"):
        find_targets(tiny_model, first_layer=1)
