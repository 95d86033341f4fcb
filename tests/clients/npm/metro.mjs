// React Native's bundler gives `import` the `default` of a CommonJS module, Node gives all of it.
import whole from "react-native-sse";

export default whole.default;
