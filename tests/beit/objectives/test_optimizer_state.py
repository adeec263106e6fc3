import torch

from beit.objectives.optimizer_state import OLD_FILE, load_optimizer, save_optimizer


def stepped(seed: int, steps: int = 3) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A small model and its optimizer, with two groups, after some steps."""
    generator = torch.Generator().manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    groups = [{"params": [model.weight], "lr_scale": 0.5}, {"params": [model.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), fused=True)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return model, optimizer


def equal(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and all(map(equal, one, other))
    return one == other


def test_what_was_saved_is_loaded_to_the_last_bit(tmp_path):
    _, optimizer = stepped(1)
    save_optimizer(optimizer, tmp_path)
    _, other = stepped(2, steps=0)
    load_optimizer(other, tmp_path, torch.device("cpu"))
    assert equal(optimizer.state_dict(), other.state_dict())


def test_the_file_of_an_older_version_is_read(tmp_path):
    _, optimizer = stepped(1)
    torch.save(optimizer.state_dict(), tmp_path / OLD_FILE)
    _, other = stepped(2, steps=0)
    load_optimizer(other, tmp_path, torch.device("cpu"))
    assert equal(optimizer.state_dict(), other.state_dict())
