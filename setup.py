from setuptools import find_packages, setup

setup(
    name="esc-arch",
    version="0.1.0",
    packages=find_packages(include=["esc_arch*", "basicsr_cli*"]),
    python_requires=">=3.10",
    install_requires=["basicsr", "torch", "torchvision", "opencv-python", "lmdb", "pyyaml"],
    entry_points={
        "console_scripts": ["basicsr=basicsr_cli.main:main"],
        "basicsr.plugins": ["esc=esc_arch"],
    },
)
