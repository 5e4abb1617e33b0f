from dapps import DApp, Price, Tensor
class Hello(DApp):
    """Doubles a number."""
    price, inputs, outputs = Price(100), [Tensor("X", "FP32", [1])], [Tensor("Y", "FP32", [1])]
    def load(self, device): pass
    def forward(self, X): return {"Y": 2 * X}
    def example(self): return {"X": __import__("numpy").ones((1, 1), "f4")}
