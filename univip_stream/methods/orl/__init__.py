"""ORL: the method, and the pairs of regions that its second stage finds and its third stage trains on."""

from univip_stream.methods.orl.method import ORL as ORL
