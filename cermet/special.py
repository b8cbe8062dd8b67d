"""`cermet.special`: special functions, derived from the op records."""

from cermet.frontend.attach import functions as _functions

globals().update(_functions("special"))
