"""Keras's side of `steps`: it trains one epoch for each line on its standard input and prints samples per second.

It runs in an environment of its own, with Keras and TensorFlow and without Recast.
"""

import json
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from keras import layers

BATCH, STEPS_BACK, FEATURES = 128, 120, 14
LAYERS = {"gru": layers.GRU, "lstm": layers.LSTM, "simple_rnn": layers.SimpleRNN}

name, jit_compile = sys.argv[1], {"on": True, "off": False, "auto": "auto"}[sys.argv[2]]
units, steps, threads = (int(argument) for argument in sys.argv[3:])
tf.config.threading.set_intra_op_parallelism_threads(threads)
tf.config.threading.set_inter_op_parallelism_threads(threads)
x = np.random.default_rng(0).standard_normal((BATCH, STEPS_BACK, FEATURES)).astype(np.float32)
y = np.random.default_rng(1).standard_normal(BATCH).astype(np.float32)
batches = tf.data.Dataset.from_tensors((x, y)).cache().repeat().prefetch(2)
model = keras.Sequential([layers.Input((STEPS_BACK, FEATURES)), LAYERS[name](units), layers.Dense(1)])
model.compile(optimizer="rmsprop", loss="mae", jit_compile=jit_compile)
for _ in sys.stdin:
    begun = time.perf_counter()
    model.fit(batches, steps_per_epoch=steps, epochs=1, verbose=0)
    print(json.dumps(steps * BATCH / (time.perf_counter() - begun)), flush=True)
