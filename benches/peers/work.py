"""What a training step costs, without PyTorch: operations of a forward pass and units of work a sample of each method.

A unit is a forward pass, an input gradient or a weight gradient. PGD-10 is 20 units, TRADES's attack one more for its clean
forward pass, each train pass 3.
"""

UNITS = {"pgd-at": 23, "trades": 27, "mart": 26}
ATTACK_UNITS = {"pgd-at": 20, "trades": 21, "mart": 20}


def forward_flops(width, classes=10):
    """Operations of one forward pass of one image: 2 a multiply-add, convolutions and the linear layer."""
    total, inputs = 32 * 32 * 9 * 3 * width, width
    for stage in range(4):
        outputs, side = width << stage, 32 >> stage
        total += side * side * 9 * (inputs * outputs + 3 * outputs * outputs)
        total += side * side * inputs * outputs if inputs != outputs else 0
        inputs = outputs
    return 2 * (total + inputs * classes)
