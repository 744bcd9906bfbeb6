// Shows an image to llama.cpp and prints what it computes, as JSON. Compiled by test_llama_cpp.py against its headers.
//
//     answer MODEL.gguf MMPROJ.gguf RGB WIDTH HEIGHT PROMPT NEW_TOKENS
//
// RGB: a file with WIDTH x HEIGHT x 3 bytes. PROMPT holds the media marker once.
// Output: {"prompt": ids of the texts, -1 for every image token, "features": projected image, row by row,
//          "logits": behind the prompt, "tokens": greedy ids}

#include "llama.h"
#include "mtmd.h"
#include "mtmd-helper.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

static void require(bool ok, const char * what) {
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        exit(1);
    }
}

template <typename T> static void print(const char * name, const std::vector<T> & values, const char * end) {
    printf("\"%s\": [", name);
    for (size_t i = 0; i < values.size(); i++) {
        printf("%s%.9g", i ? ", " : "", (double) values[i]);
    }
    printf("]%s", end);
}

int main(int argc, char ** argv) {
    require(argc == 8, "seven arguments");
    llama_backend_init();
    llama_model_params model_params = llama_model_default_params();
    model_params.n_gpu_layers = 0;
    llama_model * model = llama_model_load_from_file(argv[1], model_params);
    require(model, "the model does not load");
    llama_context_params context_params = llama_context_default_params();
    context_params.n_ctx = 512;
    context_params.n_batch = 512;
    context_params.n_threads = 1;
    context_params.n_threads_batch = 1;
    context_params.type_k = GGML_TYPE_F32;
    context_params.type_v = GGML_TYPE_F32;
    context_params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context * context = llama_init_from_model(model, context_params);
    require(context, "no context");
    mtmd_context_params eye_params = mtmd_context_params_default();
    eye_params.use_gpu = false;
    eye_params.n_threads = 1;
    eye_params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    mtmd_context * eyes = mtmd_init_from_file(argv[2], model, eye_params);
    require(eyes, "the mmproj file does not load");

    std::ifstream file(argv[3], std::ios::binary);
    const std::vector<char> rgb((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    mtmd_bitmap * bitmap = mtmd_bitmap_init(atoi(argv[4]), atoi(argv[5]), (const unsigned char *) rgb.data());
    const std::string prompt = argv[6];
    mtmd_input_text text = {};
    text.text = prompt.c_str();
    text.text_len = prompt.size();
    text.add_special = true;
    text.parse_special = true;
    mtmd_input_chunks * chunks = mtmd_input_chunks_init();
    const mtmd_bitmap * bitmaps[] = {bitmap};
    require(mtmd_tokenize(eyes, chunks, &text, bitmaps, 1) == 0, "the prompt cannot be tokenised");

    const int width = llama_model_n_embd(model);
    std::vector<float> features;
    std::vector<int> ids;
    for (size_t i = 0; i < mtmd_input_chunks_size(chunks); i++) {
        const mtmd_input_chunk * chunk = mtmd_input_chunks_get(chunks, i);
        size_t count = mtmd_input_chunk_get_n_tokens(chunk);
        if (mtmd_input_chunk_get_type(chunk) == MTMD_INPUT_CHUNK_TYPE_TEXT) {
            const llama_token * tokens = mtmd_input_chunk_get_tokens_text(chunk, &count);
            ids.insert(ids.end(), tokens, tokens + count);
        } else {
            ids.insert(ids.end(), count, -1);
            require(mtmd_encode_chunk(eyes, chunk) == 0, "the image cannot be encoded");
            const float * output = mtmd_get_output_embd(eyes);
            features.insert(features.end(), output, output + count * width);
        }
    }
    llama_pos past = 0;
    require(mtmd_helper_eval_chunks(eyes, context, chunks, 0, 0, 512, true, &past) == 0, "evaluation fails");

    const int rows = llama_vocab_n_tokens(llama_model_get_vocab(model));
    const float * last = llama_get_logits_ith(context, -1);
    const std::vector<float> logits(last, last + rows);
    std::vector<int> answer;
    for (int i = 0; i < atoi(argv[7]); i++) {
        last = llama_get_logits_ith(context, -1);
        llama_token token = (llama_token) (std::max_element(last, last + rows) - last);
        answer.push_back(token);
        llama_batch batch = llama_batch_init(1, 0, 1);
        batch.n_tokens = 1;
        batch.token[0] = token;
        batch.pos[0] = past++;
        batch.n_seq_id[0] = 1;
        batch.seq_id[0][0] = 0;
        batch.logits[0] = true;
        require(llama_decode(context, batch) == 0, "decoding fails");
        llama_batch_free(batch);
    }
    printf("{");
    print("prompt", ids, ", ");
    print("features", features, ", ");
    print("logits", logits, ", ");
    print("tokens", answer, "}\n");
    return 0;
}
