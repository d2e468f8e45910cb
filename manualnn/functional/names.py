"""What torch calls a thing in its messages."""


def scalar_type(t):
    """As torch calls it in its messages: Long, Byte, ComplexDouble."""
    return t.type().rpartition(".")[2].removesuffix("Tensor")
