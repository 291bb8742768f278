// Runs a graph model of TensorFlow.js: node web_model.cjs FOLDER IMAGES.bin RESULT.bin HEIGHT WIDTH
// (float32 both, images one after the other, channels last). Needs @tensorflow/tfjs on NODE_PATH.
const fs = require("fs");
const path = require("path");
const tf = require("@tensorflow/tfjs");

async function main([folder, given, found, height, width]) {
  const { modelTopology, weightsManifest, signature, format } = JSON.parse(
    fs.readFileSync(path.join(folder, "model.json"), "utf8"),
  );
  const parts = weightsManifest.flatMap((group) => group.paths).map((name) => fs.readFileSync(path.join(folder, name)));
  const weightData = new Uint8Array(Buffer.concat(parts)).buffer;
  const weightSpecs = weightsManifest.flatMap((group) => group.weights);
  const model = await tf.loadGraphModel(
    tf.io.fromMemory({ modelTopology, weightSpecs, weightData, signature, format }),
  );
  const shape = [1, Number(height), Number(width), 3];
  const size = shape.reduce((a, b) => a * b);
  const numbers = new Float32Array(new Uint8Array(fs.readFileSync(given)).buffer);
  const results = [];
  for (let start = 0; start < numbers.length; start += size) {
    const result = model.execute(tf.tensor(numbers.subarray(start, start + size), shape));
    results.push(Buffer.from((await result.data()).buffer));
  }
  fs.writeFileSync(found, Buffer.concat(results));
}

main(process.argv.slice(2));
