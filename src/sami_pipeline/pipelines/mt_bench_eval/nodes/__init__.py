"""Nodes of mt_bench_eval: models under test answer MT-Bench and are compared."""
