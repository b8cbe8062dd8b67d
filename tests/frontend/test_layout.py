"""What a tensor says of its memory."""

from __future__ import annotations

import cermet as ct


def test_data_ptr_is_where_the_value_lies() -> None:
    x = ct.ones(3) + 1
    assert x.data_ptr() != 0
    assert x.data_ptr() == x.data_ptr() == x.detach().data_ptr()
