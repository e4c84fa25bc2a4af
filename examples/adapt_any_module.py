"""The inner loop alone, on any module: a Transformer encoder that adapts to what a sequence means.

Tasks are hidden linear functions of a sequence's mean; the module is learned with a step size for each of its layers.
"""

import torch

from metarl.adaptation import LearnedRates, adapt


def make_model():
    """Reads ``[sequence, time, 3]``, answers with one number."""
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 16), torch.nn.TransformerEncoder(layer, 1), torch.nn.Flatten(), torch.nn.Linear(16 * 5, 1)
    )


def draw(num_tasks):
    """Support and query of each task: inputs ``[task, example, time, 3]`` and answers ``[task, example, 1]``."""
    weights = torch.randn(num_tasks, 3, 1)
    x = torch.randn(2, num_tasks, 10, 5, 3)
    return (x[0], x[0].mean(2) @ weights), (x[1], x[1].mean(2) @ weights)


def main(iterations=60):
    """Train, and return the losses after adaptation."""
    torch.manual_seed(0)
    model = make_model()
    rule = LearnedRates(dict(model.named_parameters()), 0.05, per="layer")
    optimizer = torch.optim.Adam([*model.parameters(), *rule.parameters()], lr=3e-3)
    losses = []
    for _ in range(iterations):
        (x, y), (x_new, y_new) = draw(num_tasks=8)

        def error(model, x=x, y=y):
            return (model(x) - y).square().mean((1, 2))  # one number for each task

        loss = (adapt(model, error, steps=2, rule=rule, num_tasks=8)(x_new) - y_new).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    found = main()
    print(
        f"squared error after adaptation: {sum(found[:10]) / 10:.3f} at first, {sum(found[-10:]) / 10:.3f} at the end"
    )
