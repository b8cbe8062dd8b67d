"""Optimizers, learning-rate schedules and weight averaging, with the names of torch.optim."""
# written by the optim/data helper; do not overwrite

from cermet.optim.adadelta import Adadelta
from cermet.optim.adafactor import Adafactor
from cermet.optim.adagrad import Adagrad
from cermet.optim.adam import Adam
from cermet.optim.adamax import Adamax
from cermet.optim.adamw import AdamW
from cermet.optim.asgd import ASGD
from cermet.optim.muon import Muon
from cermet.optim.nadam import NAdam
from cermet.optim.optimizer import Optimizer
from cermet.optim.radam import RAdam
from cermet.optim.rmsprop import RMSprop
from cermet.optim.rprop import Rprop
from cermet.optim.sgd import SGD
