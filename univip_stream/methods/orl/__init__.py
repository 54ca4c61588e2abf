"""ORL: the method, and the pairs of regions that its second stage makes and its third trains on."""

from univip_stream.methods.orl.method import ORL as ORL
